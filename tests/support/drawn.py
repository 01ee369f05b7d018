"""Texts from outside that try to be markup."""

NAME = (
    "%%{init: {'theme':'x'}}%% \"]; click n0 \"javascript:alert(1)\"\n"
    "</title><script>alert(1)</script> \\N \x1b[31m &amp;"
)
TEXT = 'end"]:::first --> x; <img src=x onerror=alert(1)> </script><b>bold</b> \\" \\N #quot; `code` ]]> -->'
