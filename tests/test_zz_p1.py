import json
def test_it(multi_run):
    m=json.loads((multi_run/"metrics.json").read_text())
    for e in m["epochs"]: print(e["dev"]["imdb"], e["dev"]["numbers_spans"], e["dev"]["words"],e["seconds"])
