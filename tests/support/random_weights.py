"""Files of weights with the right names and shapes and random values, for the code that loads them; all small."""

import numpy as np
import torch
import torchvision


def save_random_weights(network, path, gain=1.0):
    """Random weights of the right names and shapes in a small file: each tensor is a view of a short buffer."""
    generator = torch.Generator().manual_seed(0)

    def random(name, value):
        short = torch.randn(max(1, sum(value.shape)), generator=generator)
        if value.dim() > 1:
            short *= gain * (len(value) / value.numel()) ** 0.5       # over the square root of the fan-in
        else:
            short = 1 + 0.1 * short.abs() if name.endswith(('.weight', 'running_var')) else 0.05 * short
        return short.as_strided(value.shape, [1] * value.dim())
    torch.save({name: random(name, value) if value.is_floating_point() else value
                for name, value in network.state_dict().items()}, path)


def inception():
    return torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)


def save_antelope(folder, faces=2):
    """A detector that finds `faces` faces in every frame that is not dark, and a recogniser of random weights.

    With insightface's names, inputs and outputs, at a detection size of 256.
    """
    from onnx import TensorProto, helper, numpy_helper, save
    generator = np.random.default_rng(0)

    def constant(name, value):
        return numpy_helper.from_array(np.asarray(value, np.float32), name)

    def network(name, nodes, size, outputs, constants):
        image = helper.make_tensor_value_info('image', TensorProto.FLOAT, [1, 3, size, size])
        graph = helper.make_graph(nodes, name, [image],
                                  [helper.make_tensor_value_info(*output) for output in outputs], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8)
        save(model, folder / name)

    # Scores, boxes and five points of every anchor, at strides 8, 16, 32, two anchors a place.
    nodes = [helper.make_node('ReduceMax', ['image'], ['brightest'], keepdims=0),
             helper.make_node('Greater', ['brightest', 'dark'], ['visible']),
             helper.make_node('Cast', ['visible'], ['lit'], to=TensorProto.FLOAT)]
    constants, outputs = [constant('dark', -0.9)], []
    for width, kind in ((1, 'score'), (4, 'box'), (10, 'points')):
        for stride in (8, 16, 32):
            anchors = 2 * (256 // stride) ** 2
            values = np.zeros((anchors, width), np.float32)
            if stride == 8:
                for place, score, reach in list(((16 * 32 + 14, 0.9, 8), (4 * 32 + 4, 0.7, 3)))[:faces]:
                    values[2 * place] = {
                        'score': [score], 'box': [reach] * 4,
                        'points': np.array([-.4, -.3, .4, -.3, 0, 0, -.3, .4, .3, .4]) * reach}[kind]
            constants.append(constant(f'{kind}{stride}_all', values))
            nodes.append(helper.make_node('Mul', [f'{kind}{stride}_all', 'lit'], [f'{kind}{stride}']))
            outputs.append((f'{kind}{stride}', TensorProto.FLOAT, [anchors, width]))
    network('scrfd_10g_bnkps.onnx', nodes, 256, outputs, constants)

    network('glintr100.onnx',
            [helper.make_node('AveragePool', ['image'], ['small'], kernel_shape=[14, 14], strides=[14, 14]),
             helper.make_node('Flatten', ['small'], ['flat']),
             helper.make_node('MatMul', ['flat', 'mix'], ['embedding'])],
            112, [('embedding', TensorProto.FLOAT, [1, 512])], [constant('mix', generator.normal(size=(192, 512)))])
