"""Settings with which the notebooks are executed for their stored outputs, and compared with them."""

SETTINGS = {"SEGKIT_IGNORE_FORM": "1", "SEGKIT_EPOCHS": "12", "SEGKIT_DEVICE": "cpu"}
