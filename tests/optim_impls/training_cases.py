"""What each own method is compared with in training, and with which settings."""

from tests.optim_impls.training import Case

__all__ = ["CASES"]

LR, EPS, RANK, INTERVAL = 1e-2, 1e-8, 16, 50
ADAM = {"lr": LR, "betas": (0.9, 0.999), "eps": EPS, "weight_decay": 0.0}
LOW = {**ADAM, "rank": RANK, "projection_update_interval": INTERVAL}
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

UNQUANTISED = "same method, not quantised"
ADAMW = "no public one runs here: AdamW of the same rate"
BELOW = "its own variant: projects the scaled gradient back"
FACTOR = 0.1
"""For what is compared with AdamW, which keeps full states."""

CASES: tuple[Case, ...] = (
    Case(name="lion", reference="pytorch_optimizer.Lion", hyper=LION, settings=LION),
    Case(
        name="adan",
        label="authors' form",
        reference="pytorch_optimizer.Adan",
        hyper={**ADAN, "bias_correction": True},
        settings=ADAN,
    ),
    Case(name="adan", label="paper's form", reference="pytorch_optimizer.Adan", hyper=ADAN, settings=ADAN),
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
        label="released form",
        reference="pytorch_optimizer.Fira",
        hyper={**GALORE, "scales_residual": False},
        settings=ADAM,
        projected=LIBRARY_THEIRS,
    ),
    Case(
        name="fira",
        label="paper's form",
        reference="pytorch_optimizer.Fira",
        hyper=GALORE,
        settings=ADAM,
        projected=LIBRARY_THEIRS,
    ),
    Case(
        name="apollo",
        reference="pytorch_optimizer.APOLLO",
        hyper={**LOW, "projection_scale": 1.0},
        settings={**ADAM, "scale_type": "channel"},
        projected=LIBRARY_THEIRS,
        note=BELOW,
    ),
    Case(
        name="apollo_mini",
        reference="pytorch_optimizer.APOLLO",
        hyper={**ADAM, "projection_update_interval": INTERVAL, "projection_scale": 64.0},
        settings={**ADAM, "scale_type": "tensor"},
        projected={**LIBRARY_THEIRS, "rank": 1},
        note=BELOW,
    ),
    Case(
        name="q_apollo", reference="torch.optim.AdamW", hyper=LOW, settings=ADAM, note=ADAMW, tolerance=FACTOR
    ),
    Case(
        name="q_apollo_mini",
        reference="torch.optim.AdamW",
        hyper={**ADAM, "projection_update_interval": INTERVAL, "projection_scale": 64.0},
        settings=ADAM,
        note=ADAMW,
        tolerance=FACTOR,
    ),
    *(
        Case(
            name=name, reference="torch.optim.AdamW", hyper=hyper, settings=ADAM, note=ADAMW, tolerance=FACTOR
        )
        for name, hyper in {
            "ldadam": {"lr": LR, "rank": RANK},
            "subtrack": GALORE,
            "gwt": {**ADAM, "projection_scale": 0.25},
            "frugal": FRUGAL,
            "frugal_columns": FRUGAL,
            "frugal_elements": FRUGAL,
            "frugal_random": FRUGAL,
            "frugal_svd": FRUGAL,
        }.items()
    ),
    Case(name="adam_8bit", reference="bitsandbytes.optim.Adam8bit", hyper=ADAM, settings=ADAM),
    Case(name="adamw_8bit", reference="bitsandbytes.optim.AdamW8bit", hyper=ADAM, settings=ADAM),
    Case(name="sgdm_8bit", reference="bitsandbytes.optim.SGD8bit", hyper=SGDM, settings=SGDM),
    Case(name="lion_8bit", reference="bitsandbytes.optim.Lion8bit", hyper=LION, settings=LION),
    Case(name="mezo", reference="Spsa", hyper={"lr": 1e-3, "eps": 1e-3}, settings={"lr": 1e-3, "eps": 1e-3}),
)
