// The pages work without this file, by loading again. It shows progress as it comes, and what has changed.
"use strict";

(function () {
  const LOOK_AGAIN_MS = 4000;
  // Browsers open six connections to a server at most, and a stream keeps one.
  const MAX_STREAMS = 3;
  const streams = new Map();

  const wordProgress = (progress) =>
    [progress.stage, progress.total ? `${progress.done} of ${progress.total}` : "", progress.message].filter(Boolean).join(" ");

  const close = (address) => {
    streams.get(address)?.source.close();
    streams.delete(address);
  };

  const follow = (address) => {
    if (streams.has(address) || streams.size >= MAX_STREAMS) {
      return;
    }
    const stream = { source: new EventSource(address), text: "" };
    streams.set(address, stream);
    stream.source.addEventListener("progress", (event) => {
      stream.text = wordProgress(JSON.parse(event.data));
      show();
    });
    stream.source.addEventListener("final", () => {
      close(address);
      lookAgain();
    });
  };

  const show = () => {
    for (const place of document.querySelectorAll("[data-events]")) {
      place.textContent = streams.get(place.dataset.events)?.text ?? "";
    }
  };

  const followShown = () => {
    const shown = new Set([...document.querySelectorAll("[data-events]")].map((place) => place.dataset.events));
    [...streams.keys()].filter((address) => !shown.has(address)).forEach(close);
    shown.forEach(follow);
    show();
  };

  const lookAgain = async () => {
    try {
      const response = await fetch(window.location.href, { headers: { accept: "text/html" } });
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("answer");
      if (response.ok && fresh) {
        document.getElementById("answer").replaceChildren(...fresh.childNodes);
        followShown();
      }
    } catch {
      // The server is away for a moment; the next look may find it.
    }
  };

  followShown();
  window.setInterval(() => {
    if (document.querySelector("[data-unfinished]") && !document.hidden) {
      lookAgain();
    }
  }, LOOK_AGAIN_MS);
})();
