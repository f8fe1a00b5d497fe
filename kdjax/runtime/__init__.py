"""The machine: files, hosts, progress on the terminal, and the compiler's flags. It knows no experiment."""
