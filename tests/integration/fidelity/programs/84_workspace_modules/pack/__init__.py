VALUE = "of the package"
