from tests.fidelity.rounds import nash_mp


def test_known_answers(all_reached):
    all_reached(nash_mp)
