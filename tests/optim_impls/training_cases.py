"""What each own method is compared with in training, and with which settings."""

from collections.abc import Mapping
from typing import Any

from tests.optim_impls.training import BATCH, SEQUENCE, Case

__all__ = ["CASES"]

LR, EPS, RANK, INTERVAL = 1e-2, 1e-8, 16, 50
ADAM = {"lr": LR, "betas": (0.9, 0.999), "eps": EPS, "weight_decay": 0.0}
DECAYED = {**ADAM, "weight_decay": 0.1}
LOW = {**ADAM, "rank": RANK, "projection_update_interval": INTERVAL}
APOLLO = {**ADAM, "projection_update_interval": INTERVAL}
GALORE = {**LOW, "projection_scale": 1.0}
ADAFACTOR = {"lr": LR, "rank": RANK, "projection_update_interval": INTERVAL, "projection_scale": 1.0}
ADAFACTOR_THEIRS = {"lr": LR, "relative_step": False, "scale_parameter": False}
GALORE_THEIRS = {"rank": RANK, "update_proj_gap": INTERVAL, "scale": 1.0, "proj_type": "std"}
LIBRARY_THEIRS = {"rank": RANK, "update_proj_gap": INTERVAL, "scale": 1.0, "projection_type": "std"}
QUIET = {**ADAM, "no_deprecation_warning": True}
FRUGAL = {**ADAM, "projection_update_interval": INTERVAL}
SGDM = {"lr": 0.3, "momentum": 0.9}
LION = {"lr": 1e-3, "betas": (0.9, 0.99)}
SM3 = {"lr": 0.1, "momentum": 0.9}
ADAN = {"lr": LR}
SOPHIA = {"lr": 1e-3, "weight_decay": 0.0, "rho": 0.04, "bs": BATCH * SEQUENCE}
SOPHIA_THEIRS = {"lr": 1e-3, "gamma": 0.04, "batch_size": BATCH * SEQUENCE}
MEZO = {"lr": 2e-3, "eps": 1e-3}

UNQUANTISED = "same method, not quantised"
PAPER = "paper's algorithm with full tensors (none published runs here)"
BELOW = "a variant: projects the scaled gradient back"
PAPERS = "tests.optim_impls.papers"

APOLLO_THEIRS = {**ADAM, "rank": RANK, "interval": INTERVAL, "scale": 1.0, "dim": 1}
MINI_THEIRS = {**APOLLO_THEIRS, "rank": 1, "scale": 64.0, "dim": None}
MINI = {**APOLLO, "projection_scale": 64.0}
LDADAM = {"lr": LR, "betas": (0.908, 0.99), "rank": RANK, "rho": 0.908}
SUBTRACK_THEIRS = {**ADAM, "rank": RANK, "interval": INTERVAL, "scale": 1.0, "step_size": 10.0}
GWT = {**ADAM, "eps": 1e-6}
"""Details over coefficients near 0 have no other bound: with 1e-8 its own algorithm does not learn at this rate."""
GWT_THEIRS = {**GWT, "level": 2, "scale": 0.25}


def by_paper(
    name: str, reference: str, hyper: Mapping[str, Any], settings: Mapping[str, Any], **more: Any
) -> Case:
    """A method beside its paper's algorithm."""
    return Case(
        name=name,
        reference=f"{PAPERS}.{reference}",
        hyper=hyper,
        settings=settings,
        **{"note": PAPER, **more},
    )


CASES: tuple[Case, ...] = (
    Case(name="lion", reference="pytorch_optimizer.Lion", hyper=LION, settings=LION),
    Case(
        name="adan",
        label="authors' form",
        reference="pytorch_optimizer.Adan",
        hyper={**ADAN, "bias_correction": True},
        settings=ADAN,
    ),
    Case(
        name="adan",
        label="paper's form",
        reference=f"{PAPERS}.Adan",
        hyper=ADAN,
        settings=ADAN,
        note=f"{PAPER}; the authors' form ends lower here",
    ),
    by_paper("sophia", "Sophia", SOPHIA, SOPHIA_THEIRS),
    Case(name="sm3", reference="pytorch_optimizer.SM3", hyper=SM3, settings=SM3),
    Case(
        name="galore_adamw",
        reference="galore_torch.GaLoreAdamW",
        hyper=GALORE,
        settings=QUIET,
        projected=GALORE_THEIRS,
    ),
    Case(
        name="galore_adafactor",
        reference="galore_torch.GaLoreAdafactor",
        hyper=ADAFACTOR,
        settings=ADAFACTOR_THEIRS,
        projected=GALORE_THEIRS,
    ),
    Case(
        name="galore_adamw_8bit",
        reference="galore_torch.GaLoreAdamW",
        hyper=GALORE,
        settings=QUIET,
        projected=GALORE_THEIRS,
        note=UNQUANTISED,
    ),
    Case(
        name="q_galore",
        reference="galore_torch.GaLoreAdamW",
        hyper=GALORE,
        settings=QUIET,
        projected=GALORE_THEIRS,
        note=UNQUANTISED,
    ),
    Case(
        name="fira",
        reference="pytorch_optimizer.Fira",
        hyper=GALORE,
        settings=ADAM,
        projected=LIBRARY_THEIRS,
        note="same method; with a scale of 1 the paper's form and the released one are equal",
    ),
    Case(
        name="apollo",
        label="beside a library",
        reference="pytorch_optimizer.APOLLO",
        hyper=GALORE,
        settings={**ADAM, "scale_type": "channel"},
        projected=LIBRARY_THEIRS,
        note=BELOW,
    ),
    Case(
        name="apollo_mini",
        label="beside a library",
        reference="pytorch_optimizer.APOLLO",
        hyper=MINI,
        settings={**ADAM, "scale_type": "tensor"},
        projected={**LIBRARY_THEIRS, "rank": 1},
        note=BELOW,
    ),
    by_paper("apollo", "Apollo", GALORE, APOLLO_THEIRS),
    by_paper("apollo_mini", "Apollo", MINI, MINI_THEIRS),
    by_paper("q_apollo", "Apollo", GALORE, APOLLO_THEIRS, note=f"{PAPER}, not quantised"),
    by_paper("q_apollo_mini", "Apollo", MINI, MINI_THEIRS, note=f"{PAPER}, not quantised"),
    by_paper("ldadam", "LDAdam", LDADAM, LDADAM),
    by_paper("subtrack", "SubTrack", GALORE, SUBTRACK_THEIRS),
    by_paper(
        "gwt",
        "Gwt",
        {**GWT, "projection_scale": 0.25},
        GWT_THEIRS,
        note=f"{PAPER}; with an eps of 1e-8 both end above 4.6",
    ),
    *(
        by_paper(
            f"frugal_{split}".removesuffix("_block"),
            "Frugal",
            FRUGAL,
            {**ADAM, "interval": INTERVAL, "split": split},
        )
        for split in ("block", "columns", "elements", "random", "svd")
    ),
    Case(name="adam_8bit", reference="bitsandbytes.optim.Adam8bit", hyper=ADAM, settings=ADAM),
    Case(name="adamw_8bit", reference="bitsandbytes.optim.AdamW8bit", hyper=DECAYED, settings=DECAYED),
    Case(name="sgdm_8bit", reference="bitsandbytes.optim.SGD8bit", hyper=SGDM, settings=SGDM),
    Case(name="lion_8bit", reference="bitsandbytes.optim.Lion8bit", hyper=LION, settings=LION),
    Case(
        name="mezo",
        reference="tests.optim_impls.papers.MeZO",
        hyper=MEZO,
        settings=MEZO,
        note=f"{PAPER}; same directions, one batch at all steps",
        one_batch=True,
    ),
)
