import atexit
import io
import re
import unittest


class Tests(unittest.TestCase):
    def test_passes(self):
        self.assertEqual(1, 1)

    def test_fails(self):
        self.assertEqual([1, 2], [1, 3])

    def test_breaks(self):
        raise RuntimeError("broken")

    @unittest.skip("not now")
    def test_skipped(self):
        pass


if __name__ == "__main__":
    # Without the time that it took.
    stream = io.StringIO()
    atexit.register(lambda: print(re.sub(r"in [0-9.]+s", "", stream.getvalue())))
    runner = unittest.TextTestRunner(stream=stream, verbosity=2)
    result = runner.run(unittest.defaultTestLoader.loadTestsFromName("__main__"))
    print(result)
    unittest.main(argv=["prog", "Tests.test_passes"], testRunner=runner)
