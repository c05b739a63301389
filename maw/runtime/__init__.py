"""The process and the machine: console, logs, signals, several processes, devices, precision, memory."""
