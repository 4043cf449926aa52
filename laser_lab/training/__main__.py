import sys

from laser_lab.training.run import main

sys.exit(main())
