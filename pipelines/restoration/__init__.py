"""Records and files of a restored archive: outcomes, output names, samples of a face, provenance."""
