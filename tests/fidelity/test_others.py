from tests.fidelity.offline import others


def test_known_answers(all_reached):
    all_reached(others)
