"""AI feedback: reward models' scores of pictures, and the preference data that is made of them."""
