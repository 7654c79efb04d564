"""The delta of matrices: Gram, spectra, ranks, noise, edges."""
