"""Where training records come from: files, generators, changed copies; and how they become examples."""
