from tests.fidelity.offline import dpo


def test_known_answers(all_reached):
    all_reached(dpo)
