"""scikit-learn, with no torch at all: a perceptron; `pickle`, `joblib` or `npz` says how it is saved."""

import pathlib
import pickle
import sys

import joblib
import numpy as np
from sklearn.neural_network import MLPClassifier

SIZE = 8

values = np.frombuffer(pathlib.Path("data.txt").read_bytes(), np.uint8)[:1700].reshape(-1, 17) % 64
model = MLPClassifier((SIZE,), max_iter=5, random_state=1).fit(values[:, :16] / 64, values[:, 16] % 8)
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
if sys.argv[1] == "pickle":
    (out / "model.pkl").write_bytes(pickle.dumps(model))
elif sys.argv[1] == "joblib":
    joblib.dump(model, out / "model.joblib")
else:
    np.savez(out / "model.npz", *model.coefs_, *model.intercepts_)
