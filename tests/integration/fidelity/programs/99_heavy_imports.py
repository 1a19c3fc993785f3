import collections.abc
import ctypes.util
import dataclasses
import datetime
import decimal
import email.message
import enum
import fractions
import functools
import hashlib
import http.client
import importlib.metadata
import io
import ipaddress
import json
import pathlib
import random
import re
import site
import sqlite3
import ssl
import statistics
import sysconfig
import typing
import unittest
import urllib.request
import uuid
import xml.etree.ElementTree
import zoneinfo


@dataclasses.dataclass(order=True)
class Item:
    name: str
    price: decimal.Decimal = decimal.Decimal("1.10")
    tags: list = dataclasses.field(default_factory=list)


class Colour(enum.Flag):
    RED = enum.auto()
    BLUE = enum.auto()


print(Item("a"), Colour.RED | Colour.BLUE, typing.get_type_hints(Item))
print(decimal.getcontext(), decimal.Decimal(1) / 3, fractions.Fraction(1, 3))
random.seed(42)
print([random.random() for _ in range(3)], random.sample(range(100), 5))
print(hash("text") == hash("te" + "xt"), {"a", "b"} == {"b", "a"}, hash(1.5), hash(()))
print(site.getsitepackages(), site.ENABLE_USER_SITE, site.getusersitepackages(), site.PREFIXES)
print(sysconfig.get_paths(), sysconfig.get_platform(), sysconfig.get_default_scheme())
print(sysconfig.get_config_var("prefix"), sysconfig.get_config_var("userbase"))
print(sorted(d.metadata["Name"] for d in importlib.metadata.distributions()))
print(ssl.OPENSSL_VERSION, ssl.create_default_context().verify_mode, ssl.get_default_verify_paths())
print(hashlib.sha256(b"x").hexdigest(), sorted(hashlib.algorithms_available))
print(uuid.uuid5(uuid.NAMESPACE_DNS, "x"), zoneinfo.ZoneInfo("UTC"))
print(datetime.datetime(2020, 1, 1).astimezone().tzinfo, ctypes.util.find_library("c"))
print(xml.etree.ElementTree.tostring(xml.etree.ElementTree.fromstring("<a><b/></a>")))
print(pathlib.Path.home(), pathlib.Path(__file__), re.sub("(?P<x>a)", r"\g<x>b", "cat"))
with sqlite3.connect("data.sqlite") as database:
    database.execute("create table t (a integer primary key, b text)")
    database.executemany("insert into t (b) values (?)", [("x",), ("y",)])
    print(database.execute("select * from t").fetchall())
silent = unittest.TextTestRunner(stream=io.StringIO())  # it says how long it took
unittest.main(argv=["prog", "-q"], exit=False, testRunner=silent)
