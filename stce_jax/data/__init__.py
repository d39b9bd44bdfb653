"""Reading datasets: from files on a disk or a remote storage to batches on the devices. `prepare` writes them."""
