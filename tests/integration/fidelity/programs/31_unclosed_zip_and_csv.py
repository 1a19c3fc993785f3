import csv
import zipfile

sheet = open("table.csv", "w", newline="")
writer = csv.writer(sheet)
writer.writerows([[1, "two"], [3, "f,our"]])
archive = zipfile.ZipFile("a.zip", "w")
archive.writestr(zipfile.ZipInfo("name.txt", (2020, 1, 1, 0, 0, 0)), "content")
print("left open")
