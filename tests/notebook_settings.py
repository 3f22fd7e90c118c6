"""Settings with which the notebooks are executed for their stored outputs, and compared with them."""

# from the starter, as users train: execute the notebooks again where it changes
SETTINGS = {"SEGKIT_IGNORE_FORM": "1", "SEGKIT_EPOCHS": "6", "SEGKIT_DEVICE": "cpu"}
