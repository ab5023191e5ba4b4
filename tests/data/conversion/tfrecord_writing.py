"""TFRecord files made by other people's code: protocol buffers' own encoder, and the record writer of TensorBoard."""

import pytest


def example_class():
    """``tf.train.Example``, declared as its documentation declares it."""
    pytest.importorskip("google.protobuf", reason="the train extra is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example_for_tests.proto", package="tests", syntax="proto3")

    def message(name, *fields):
        added = file.message_type.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, start=1):
            entry = added.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, int):
                entry.type = kind
            else:
                entry.type, entry.type_name = 11, f".tests.{kind}"
        return added

    message("BytesList", ("value", 12, True))
    message("FloatList", ("value", 2, True))
    message("Int64List", ("value", 3, True))
    feature = message(
        "Feature", ("bytes_list", "BytesList", False), ("float_list", "FloatList", False),
        ("int64_list", "Int64List", False),
    )  # fmt: skip
    feature.oneof_decl.add(name="kind")
    for entry in feature.field:
        entry.oneof_index = 0
    features = message("Features", ("feature", "Features.FeatureEntry", True))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".tests.Feature")
    message("Example", ("features", "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tests.Example"))


def encoded(features):
    """An ``Example`` of a mapping from name to bytes, floats or whole numbers."""
    example = example_class()()
    for name, values in features.items():
        entry = example.features.feature[name]
        if isinstance(values[0], bytes):
            entry.bytes_list.value.extend(values)
        elif isinstance(values[0], float):
            entry.float_list.value.extend(values)
        else:
            entry.int64_list.value.extend(values)
    return example.SerializeToString()


def write_records(path, records):
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer", reason="the train extra is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        made = writer.RecordWriter(file)
        for record in records:
            made.write(record)
        made.flush()
    return path
