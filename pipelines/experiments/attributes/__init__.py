"""The long tail on faces: how often a cascade keeps an attribute, by its rate in the training data."""
