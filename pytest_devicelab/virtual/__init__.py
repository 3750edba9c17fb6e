"""Virtual Snapdragons: Android-shaped devices behind the real adb, with Qualcomm's HTP numerics."""
