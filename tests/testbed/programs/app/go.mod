// What runs in the testbed's pods. It needs nothing but the standard library.
module lictor/programs/app

go 1.24
