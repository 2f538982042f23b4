import pytest
from bert_mtl.config import EvaluateConfig
from bert_mtl.evaluate import evaluate
def test_x(multi_run, capsys, tmp_path):
    r = evaluate(EvaluateConfig(run=str(multi_run), part="test", batch_size=8, errors=2, baseline=True, output=str(tmp_path/'o.json')))
    with capsys.disabled():
        print(capsys.readouterr().out); print((tmp_path/'o.json').read_text()[:6000])
