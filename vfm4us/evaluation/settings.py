"""What a probe may be asked for. It lies apart from what measures it so that `--help` need not wait for torch."""

TASKS = (
    "busi",
    "liver",
    "gallbladder",
    "breast_busbra",
    "fetal_nt:standard,nonstandard",
    "busi-to-breast_busbra:benign,malignant",
    "breast_busbra-to-busi:benign,malignant",
)
SCALINGS = ("raw", "centre", "standardise", "half-whiten", "whiten")
LABELS = (5, 10, 20, 50, 100, 200, 500, 1000)  # and all there are
