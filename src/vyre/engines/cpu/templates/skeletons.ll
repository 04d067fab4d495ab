; Loops over the lanes of a tile, put together by skeleton.py. A handler is ptr(ptr ctx, ptr op): it works on lanes below
; ctx.n and returns the op to run next. Offsets are those of abi.py, filled in by name ($CTX_N ...).
;
; What happens to one element is written once, for scalars. skeleton.py makes from it the body of a loop over blocks of
; many lanes (names %e.* become %<loop>.v.*, types become vectors) and of a loop over the lanes that are left (%<loop>.s.*).
; Values that are the same for all lanes are called %u.*: a scalar %us.* and its splat %uv.*.
; An operand may be the very same memory as the result: a block is read whole before it is written.

;; open
define ptr @"$name"(ptr %ctx, ptr %op) $attributes {
entry:
  %n = load i64, ptr %ctx, align 8
  %ptrs.at = getelementptr i8, ptr %ctx, i64 $CTX_PTRS
  %ptrs = load ptr, ptr %ptrs.at, align 8

;; leave
leave:
  %next = getelementptr i8, ptr %op, i64 $OP_BYTES
  ret ptr %next
}

; Where the lanes of operand $x are; its pointer table entry is at $at of the record.
;; vector
  %$x.at = getelementptr i8, ptr %op, i64 $at
  %$x.number = load i32, ptr %$x.at, align 4
  %$x.wide = zext i32 %$x.number to i64
  %$x.entry = getelementptr ptr, ptr %ptrs, i64 %$x.wide
  %$x.base = load ptr, ptr %$x.entry, align 8

; Operand $x is the same for all lanes: OP_IMM itself when OP_AUX is 0, else parameter OP_AUX - 1.
;; uniform
  %$x.imm = getelementptr i8, ptr %op, i64 $OP_IMM
  %$x.aux.at = getelementptr i8, ptr %op, i64 $OP_AUX
  %$x.aux = load i64, ptr %$x.aux.at, align 8
  %$x.constant = icmp eq i64 %$x.aux, 0
  %$x.params.at = getelementptr i8, ptr %ctx, i64 $CTX_PARAMS
  %$x.params = load ptr, ptr %$x.params.at, align 8
  %$x.number = sub i64 %$x.aux, 1
  %$x.param = getelementptr i64, ptr %$x.params, i64 %$x.number
  %$x.from = select i1 %$x.constant, ptr %$x.imm, ptr %$x.param
  %us.$x = load $T, ptr %$x.from, align 4

;; splat
  %us.$x.first = insertelement <$lanes x $T> poison, $T %us.$x, i64 0
  %uv.$x = shufflevector <$lanes x $T> %us.$x.first, <$lanes x $T> poison, <$lanes x i32> zeroinitializer

; The mask in force: one byte per lane.
;; mask
  %masks.at = getelementptr i8, ptr %ctx, i64 $CTX_MASKS
  %masks = load ptr, ptr %masks.at, align 8
  %mask.at = getelementptr i8, ptr %op, i64 $OP_MASK
  %mask.offset = load i32, ptr %mask.at, align 4
  %mask.wide = zext i32 %mask.offset to i64
  %mask.base = getelementptr i8, ptr %masks, i64 %mask.wide

;; imm
  %imm.at = getelementptr i8, ptr %op, i64 $OP_IMM
  %imm = load i64, ptr %imm.at, align 8
;; aux
  %aux.at = getelementptr i8, ptr %op, i64 $OP_AUX
  %aux = load i64, ptr %aux.at, align 8

; --- one element -----------------------------------------------------------------------------------------------------

;; fetch
  %e.$x.p = getelementptr $T, ptr %$x.base, i64 %e.i
  %e.$x = load $T, ptr %e.$x.p, align $A

;; fetch.mask
  %e.m.p = getelementptr i8, ptr %mask.base, i64 %e.i
  %e.m = load i8, ptr %e.m.p, align 1
  %e.on = icmp ne i8 %e.m, 0

;; put
  %e.r.p = getelementptr $T, ptr %d.base, i64 %e.i
  store $T %e.r, ptr %e.r.p, align $A

; Past the caches: a whole block that starts a cache line.
;; put.past
  %e.r.p = getelementptr $T, ptr %d.base, i64 %e.i
  store $T %e.r, ptr %e.r.p, align 64, !nontemporal !2

; Lanes that do not take part keep what is there.
;; put.masked
  %e.r.p = getelementptr $T, ptr %d.base, i64 %e.i
  %e.old = load $T, ptr %e.r.p, align $A
  %e.new = select i1 %e.on, $T %e.r, $T %e.old
  store $T %e.new, ptr %e.r.p, align $A

; --- loops: $L is the loop's label, $from the block before it, $n its lanes, $element what it does ---------------------

;; lanes
  %$L.whole = and i64 $n, -$lanes
  %$L.few = icmp eq i64 %$L.whole, 0
  br i1 %$L.few, label %$L.rest, label %$L.block
$L.block:
  %$L.v.i = phi i64 [ 0, %$from ], [ %$L.v.i.next, %$L.block ]
$wide
  %$L.v.i.next = add nuw nsw i64 %$L.v.i, $lanes
  %$L.more.v = icmp ult i64 %$L.v.i.next, %$L.whole
  br i1 %$L.more.v, label %$L.block, label %$L.rest
$L.rest:
  %$L.done = icmp eq i64 %$L.whole, $n
  br i1 %$L.done, label %$L.end, label %$L.one
$L.one:
  %$L.s.i = phi i64 [ %$L.whole, %$L.rest ], [ %$L.s.i.next, %$L.one ]
$single
  %$L.s.i.next = add nuw nsw i64 %$L.s.i, 1
  %$L.more.s = icmp ult i64 %$L.s.i.next, $n
  br i1 %$L.more.s, label %$L.one, label %$L.end, !llvm.loop !0
$L.end:

; The same for a result that may be an output larger than the caches: stores go around these then, which saves reading the
; lines first. Only to lines that blocks fill; what reads the output again would wait for memory, see Image.
;; lanes.stream
  %$L.whole = and i64 $n, -$lanes
  %$L.few = icmp eq i64 %$L.whole, 0
  br i1 %$L.few, label %$L.rest, label %$L.way
$L.way:
  %stream.at = getelementptr i8, ptr %ctx, i64 $CTX_STREAM
  %stream.word = load i64, ptr %stream.at, align 8
  %stream.large = icmp ne i64 %stream.word, 0
  %stream.output = icmp uge i32 %d.number, $PTR_OUTPUTS
  %stream.address = ptrtoint ptr %d.base to i64
  %stream.low = and i64 %stream.address, 63
  %stream.line = icmp eq i64 %stream.low, 0
  %stream.may = and i1 %stream.large, %stream.output
  %stream = and i1 %stream.may, %stream.line
  br i1 %stream, label %$L.past, label %$L.block, !prof !1
$L.past:
  %$L.past.v.i = phi i64 [ 0, %$L.way ], [ %$L.past.v.i.next, %$L.past ]
$past
  %$L.past.v.i.next = add nuw nsw i64 %$L.past.v.i, $lanes
  %$L.past.more.v = icmp ult i64 %$L.past.v.i.next, %$L.whole
  br i1 %$L.past.more.v, label %$L.past, label %$L.rest
$L.block:
  %$L.v.i = phi i64 [ 0, %$L.way ], [ %$L.v.i.next, %$L.block ]
$wide
  %$L.v.i.next = add nuw nsw i64 %$L.v.i, $lanes
  %$L.more.v = icmp ult i64 %$L.v.i.next, %$L.whole
  br i1 %$L.more.v, label %$L.block, label %$L.rest
$L.rest:
  %$L.done = icmp eq i64 %$L.whole, $n
  br i1 %$L.done, label %$L.end, label %$L.one
$L.one:
  %$L.s.i = phi i64 [ %$L.whole, %$L.rest ], [ %$L.s.i.next, %$L.one ]
$single
  %$L.s.i.next = add nuw nsw i64 %$L.s.i, 1
  %$L.more.s = icmp ult i64 %$L.s.i.next, $n
  br i1 %$L.more.s, label %$L.one, label %$L.end, !llvm.loop !0
$L.end:

; The same, carrying %e.acc to %e.acc.next. $T its type, $zero its identity, $call and $tail the reduction intrinsic.
;; lanes.carry
  %$L.whole = and i64 $n, -$lanes
  %$L.few = icmp eq i64 %$L.whole, 0
  br i1 %$L.few, label %$L.rest, label %$L.block
$L.block:
  %$L.v.i = phi i64 [ 0, %$from ], [ %$L.v.i.next, %$L.block ]
  %$L.v.acc = phi <$lanes x $T> [ splat ($T $zero), %$from ], [ %$L.v.acc.next, %$L.block ]
$wide
  %$L.v.i.next = add nuw nsw i64 %$L.v.i, $lanes
  %$L.more.v = icmp ult i64 %$L.v.i.next, %$L.whole
  br i1 %$L.more.v, label %$L.block, label %$L.rest
$L.rest:
  %$L.all.v = phi <$lanes x $T> [ splat ($T $zero), %$from ], [ %$L.v.acc.next, %$L.block ]
  %$L.of.v = call $T @llvm.vector.reduce.$reduce.v${lanes}$N(<$lanes x $T> %$L.all.v)
  %$L.done = icmp eq i64 %$L.whole, $n
  br i1 %$L.done, label %$L.end, label %$L.one
$L.one:
  %$L.s.i = phi i64 [ %$L.whole, %$L.rest ], [ %$L.s.i.next, %$L.one ]
  %$L.s.acc = phi $T [ %$L.of.v, %$L.rest ], [ %$L.s.acc.next, %$L.one ]
$single
  %$L.s.i.next = add nuw nsw i64 %$L.s.i, 1
  %$L.more.s = icmp ult i64 %$L.s.i.next, $n
  br i1 %$L.more.s, label %$L.one, label %$L.end, !llvm.loop !0
$L.end:
  %$L.result = phi $T [ %$L.of.v, %$L.rest ], [ %$L.s.acc.next, %$L.one ]

; --- traps -------------------------------------------------------------------------------------------------------------
; Is there a bad lane at all (%check.result)? If so, the lowest one is the fault and the end of the tile: lanes from there on
; are gone. What runs afterwards sees %n.left lanes.

;; trap
  br i1 %check.result, label %find, label %go, !prof !1
find:
  %find.s.i = phi i64 [ 0, %check.end ], [ %find.next, %find ]
$find
  %find.next = add nuw nsw i64 %find.s.i, 1
  br i1 %find.s.bad, label %found, label %find
found:
$code
  %fault.first.at = getelementptr i8, ptr %ctx, i64 $CTX_FIRST
  %fault.first = load i64, ptr %fault.first.at, align 8
  %fault.element = add i64 %fault.first, %find.s.i
  %fault.high = shl i64 %fault.element, $FAULT_ELEMENT_SHIFT
  %fault.pc.at = getelementptr i8, ptr %op, i64 $OP_PC
  %fault.pc = load i32, ptr %fault.pc.at, align 4
  %fault.pc.wide = zext i32 %fault.pc to i64
  %fault.middle = shl i64 %fault.pc.wide, $FAULT_PC_SHIFT
  %fault.code = zext i32 %find.s.code to i64
  %fault.upper = or i64 %fault.high, %fault.middle
  %fault = or i64 %fault.upper, %fault.code
  %fault.at = getelementptr i8, ptr %ctx, i64 $CTX_FAULT
  store i64 %fault, ptr %fault.at, align 8
  store i64 %find.s.i, ptr %ctx, align 8
  br label %go
go:
  %n.left = phi i64 [ %n, %check.end ], [ %find.s.i, %found ]

; --- whole handlers ------------------------------------------------------------------------------------------------------

;; return
define ptr @"$name"(ptr %ctx, ptr %op) #0 {
  ret ptr null
}

; Every lane of scratch operand d := the constant or parameter. Runs in the prologue, whatever ctx.n is.
;; fill
  br label %each
each:
  %i = phi i64 [ 0, %entry ], [ %i.next, %each ]
  %p = getelementptr $T, ptr %d.base, i64 %i
  store <$lanes x $T> %uv.b, ptr %p, align $A
  %i.next = add nuw nsw i64 %i, $lanes
  %i.more = icmp ult i64 %i.next, $LANES
  br i1 %i.more, label %each, label %leave

; if: mask of this depth := outer mask and a != 0; on when any lane is in, else to the target.
;; branch
  br i1 %mask.result, label %leave, label %skip
skip:
  %target.at = getelementptr i8, ptr %op, i64 $OP_TARGET
  %target = load i64, ptr %target.at, align 8
  %to = getelementptr i8, ptr %op, i64 %target
  ret ptr %to

; br_if: back to the target when any lane stays.
;; branch.back
  br i1 %mask.result, label %again, label %leave
again:
  %target.at = getelementptr i8, ptr %op, i64 $OP_TARGET
  %target = load i64, ptr %target.at, align 8
  %to = getelementptr i8, ptr %op, i64 %target
  ret ptr %to

; What an element may burn (%us.limit) and has burnt (operand "used").
;; fuel
  %limit.at = getelementptr i8, ptr %ctx, i64 $CTX_FUEL
  %us.limit = load i64, ptr %limit.at, align 8
  %used.at = getelementptr i8, ptr %ctx, i64 $CTX_FUEL_USED
  %used.base = load ptr, ptr %used.at, align 8
