"""SOAP, an optimiser with memory of the gradient's correlations: Adam in the eigenbasis of Shampoo's matrices.

Vyas et al.: "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv 2409.11321, algorithm 3. DRCN's one kernel
serves D recursions, so its gradient's directions differ in scale by far more than its single entries do; DRCN has few
kernels, so that their matrices cost little beside a step.
"""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("drcn_keras")
class Soap(keras.optimizers.Optimizer):
    """Adam, computed for every kernel in the eigenbasis of its gradient's second moments.

    A kernel's gradient G is a matrix here, (rows, columns) = (height * width * channels in, channels out). With L and R
    the running means of G G^T and G^T G and Q_L, Q_R their eigenvectors, Adam's second moments and its step are those
    of Q_L^T G Q_R; the step is turned back by Q_L and Q_R. Vectors and scalars are Adam's own.

    Args:
        learning_rate: as Adam's.
        beta_1: of the running mean of the gradient, in [0, 1).
        beta_2: of the running mean of its square, in [0, 1).
        shampoo_beta: of L and R, in [0, 1).
        refresh: steps between two computations of Q_L and Q_R; they are computed after each of the first ten steps too.
        epsilon: > 0, beside the root of the second moments.
        **options: Keras's: `global_clipnorm`, `use_ema`, `name` and so on.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        shampoo_beta: float = 0.95,
        refresh: int = 50,
        epsilon: float = 1e-8,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **options)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.shampoo_beta = shampoo_beta
        self.refresh = refresh
        self.epsilon = epsilon

    def build(self, variables: Any) -> None:
        """Makes the slots of `variables`: two of their shape, and L, R, Q_L, Q_R of every kernel."""
        if self.built:
            return
        super().build(variables)
        self._first, self._second = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        self._moments = [self._matrices(variable, "moments", "zeros") for variable in variables]
        self._bases = [self._matrices(variable, "basis", "identity") for variable in variables]

    def _matrices(self, variable, name, initializer):
        """One for the rows and one for the columns of a kernel; none for what is no matrix."""
        return [
            self.add_variable((side, side), initializer, variable.dtype, name=f"{variable.name}_{axis}_{name}")
            for axis, side in zip(("row", "column"), _matrix_shape(variable.shape), strict=False)
        ]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        first, second, bases = self._first[index], self._second[index], self._bases[index]
        gradient = ops.cast(gradient, variable.dtype)
        turned = _turned(gradient, bases, back=False)
        self.assign_add(first, (1.0 - self.beta_1) * (gradient - first))
        self.assign_add(second, (1.0 - self.beta_2) * (ops.square(turned) - second))
        steps = ops.cast(self.iterations + 1, variable.dtype)
        mean = _turned(first, bases, back=False) / (1.0 - ops.power(self.beta_1, steps))
        scale = ops.sqrt(second / (1.0 - ops.power(self.beta_2, steps))) + self.epsilon
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * _turned(mean / scale, bases, back=True))
        # Last, as the paper has it: a gradient has no part but rounding outside the eigenvectors that it alone made.
        if bases:
            self._follow(ops.reshape(gradient, _matrix_shape(variable.shape)), self._moments[index], bases)

    def _follow(self, gradient, moments, bases):
        """Takes a gradient into L and R, and renews their eigenvectors where it is time."""
        across = ops.transpose(gradient)
        for mean, product in zip(moments, (gradient @ across, across @ gradient), strict=True):
            self.assign_add(mean, (1.0 - self.shampoo_beta) * (product - mean))
        due = ops.logical_or(self.iterations % self.refresh == 0, self.iterations < 10)
        for mean, basis in zip(moments, bases, strict=True):
            mean, basis_now = ops.convert_to_tensor(mean), ops.convert_to_tensor(basis)
            self.assign(basis, ops.cond(due, lambda mean=mean: _eigenvectors(mean), lambda basis=basis_now: basis))

    def get_config(self) -> dict[str, Any]:
        names = ("beta_1", "beta_2", "shampoo_beta", "refresh", "epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _matrix_shape(shape):
    """(rows, columns) of a kernel; empty where there is no matrix."""
    if len(shape) < 2:
        return ()
    columns = shape[-1]
    rows = 1
    for side in shape[:-1]:
        rows *= side
    return rows, columns


def _turned(values, bases, back):
    """A tensor of a kernel's shape into the eigenbasis, or back out of it."""
    if not bases:
        return ops.convert_to_tensor(values)
    left, right = (ops.convert_to_tensor(basis) for basis in bases)
    matrix = ops.reshape(ops.convert_to_tensor(values), _matrix_shape(values.shape))
    turned = left @ matrix @ ops.transpose(right) if back else ops.transpose(left) @ matrix @ right
    return ops.reshape(turned, values.shape)


def _eigenvectors(mean):
    # What is not finite ends training with a sentence of its own; here it would end it with LAPACK's.
    return ops.eigh(ops.where(ops.isfinite(mean), mean, 0.0))[1]
