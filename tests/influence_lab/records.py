"""What tests ask of recorded results."""


def leaves(record):
    """All numbers of a record but those of its provenance, by where they stand."""
    found = {}

    def walk(place, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{place}/{key}", inner)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(f"{place}/{number}", inner)
        elif isinstance(value, float | int):
            found[place] = float(value)

    walk("", {key: value for key, value in record.items() if key != "provenance"})
    return found
