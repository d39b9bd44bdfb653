"""The forms that ImageNet comes in."""
