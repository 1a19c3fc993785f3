# stdin: x = 40 + 2\nx\n1/0\ndef f():\n    return x\n\nf()\n
import code

code.interact(banner="hello", exitmsg="bye", local={})
breakpoint
