"""The squared Maximum Mean Discrepancy between unit channel maps, one exact implementation a file.

| implementation | kernels | cost, multiply-adds an image |
|---|---|---|
| mean | linear | C N |
| gram | polynomial, d = 2 | N² (2 C_S + C_T) |
| pairs | polynomial, d = 2 | N (3 C_S² + C_T² + 2 C_S C_T), or less |
| stream | polynomial of any d, Gaussian | N (2 C_S² + C_T² + 2 C_S C_T) |
"""
