"""Settings with which the notebooks are executed for their stored outputs, and compared with them."""

# from random weights: the stored outputs show how a student learns, and do not change with the starter
SETTINGS = {"SEGKIT_IGNORE_FORM": "1", "SEGKIT_EPOCHS": "6", "SEGKIT_DEVICE": "cpu"}
