// The page works without this file. It draws the chart from the data in the page and adds copy buttons.
"use strict";

(function () {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const isNarrow = window.matchMedia("(max-width: 44rem)");
  const isDark = window.matchMedia("(prefers-color-scheme: dark)");

  const everyThird = (values) => values.filter((_, index) => index % 3 === 0);

  const fitNarrow = (layout) => {
    layout.font.size = 11;
    layout.xaxis.tickvals = everyThird(layout.xaxis.tickvals);
    layout.xaxis.ticktext = everyThird(layout.xaxis.ticktext);
  };

  const themed = (figure) => {
    const layout = structuredClone(figure.layout);
    if (isNarrow.matches) {
      fitNarrow(layout);
    }
    layout.font = { ...layout.font, color: colour("--ink") };
    layout.xaxis = { ...layout.xaxis, gridcolor: colour("--grid"), zerolinecolor: colour("--line-strong") };
    layout.hoverlabel = { bgcolor: colour("--card"), bordercolor: colour("--line-strong"), font: { color: colour("--ink") } };
    for (const shape of layout.shapes) {
      shape.line.color = colour("--limit");
    }
    for (const annotation of layout.annotations) {
      annotation.font = { ...annotation.font, color: colour("--limit") };
    }
    const data = figure.data.map((trace) =>
      trace.type === "scatter"
        ? { ...trace, marker: { ...trace.marker, color: colour("--ink") }, error_x: { ...trace.error_x, color: colour("--ink") } }
        : trace,
    );
    return { data, layout };
  };

  const drawChart = () => {
    const target = document.getElementById("memory-chart");
    const source = document.getElementById("memory-figure");
    if (!target || !source || typeof Plotly === "undefined") {
      return;
    }
    const figure = JSON.parse(source.textContent);
    const config = { displayModeBar: false, responsive: true };
    const draw = () => {
      const { data, layout } = themed(figure);
      Plotly.react(target, data, layout, config);
    };
    document.querySelector(".chart-fallback").hidden = true;
    draw();
    isDark.addEventListener("change", draw);
    isNarrow.addEventListener("change", draw);
  };

  const addCopyButtons = () => {
    if (!navigator.clipboard) {
      return;
    }
    for (const block of document.querySelectorAll(".copyable")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "quiet";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(block.querySelector("pre").textContent);
        button.textContent = "Copied";
        window.setTimeout(() => {
          button.textContent = "Copy";
        }, 1500);
      });
      block.querySelector(".copyable-head").append(button);
    }
  };

  drawChart();
  addCopyButtons();
})();
