"""The same input pipeline in tf.data, for benchmarks/input_pipeline.py; needs TensorFlow.

    python benchmarks/tf_data_reference.py FOLDER SECONDS

Decodes only the crop (libjpeg skips the rest), resizes it bicubic and antialiased, and prints images a second.
"""

import os
import sys
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow as tf

SIZE, BATCH = 224, 128


def example(encoded):
    shape = tf.image.extract_jpeg_shape(encoded)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.zeros([1, 0, 4]),
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize(image, [SIZE, SIZE], method="bicubic", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def main():
    folder, seconds = sys.argv[1], float(sys.argv[2])
    files = [path.read_bytes() for path in sorted(Path(folder).glob("*.JPEG"))]
    cores = len(os.sched_getaffinity(0))
    dataset = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    dataset = dataset.map(example, num_parallel_calls=cores).batch(BATCH).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    batches = iter(dataset.with_options(options))
    for _ in range(4):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches))
    print(count / (time.perf_counter() - start))


if __name__ == "__main__":
    main()
