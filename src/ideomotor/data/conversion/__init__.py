"""From the formats that data sets are published in to npz episodes (``formats.npz``): one file a source."""
