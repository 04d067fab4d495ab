; Accumulators and emits: what comes after the loop over lanes, and loops that are not one element at a time.

; --- accumulators ----------------------------------------------------------------------------------------------------

;; acc
  %accs.at = getelementptr i8, ptr %ctx, i64 $CTX_ACCS
  %accs = load ptr, ptr %accs.at, align 8
  %acc.at = getelementptr i64, ptr %accs, i64 %imm

;; acc.add
  %acc.old = load i64, ptr %acc.at, align 8
  %acc.new = add i64 %acc.old, %each.result
  store i64 %acc.new, ptr %acc.at, align 8

; min and max: $T combined by $call; float results have one NaN. A 32-bit value has zeros above it.
;; acc.combine
  %acc.old = load $T, ptr %acc.at, align 8
  %acc.best = call $T @$call($T %acc.old, $T %each.result)
$fix
  %acc.bits = bitcast $T %acc.fixed to $I
  %acc.new = zext $I %acc.bits to i64
  store i64 %acc.new, ptr %acc.at, align 8
;; acc.combine.64
  %acc.old = load $T, ptr %acc.at, align 8
  %acc.best = call $T @$call($T %acc.old, $T %each.result)
$fix
  store $T %acc.fixed, ptr %acc.at, align 8

; --- float sums (decision 2): x[i] += x[i + s] for s = 512, 256 .. 1 ---------------------------------------------------

; The sum of $LANES values at %x. Sixteen columns of eight vectors are halved three times in registers, then the columns.
;; tree
define internal double @"body.tree.$N"(ptr %x) #2 {
entry:
  %columns = alloca [16 x <8 x double>], align 64
  br label %column
column:
  %k = phi i64 [ 0, %entry ], [ %k.next, %column ]
  %i = mul i64 %k, 8
$loads
  %a0 = fadd <8 x double> %v0, %v4
  %a1 = fadd <8 x double> %v1, %v5
  %a2 = fadd <8 x double> %v2, %v6
  %a3 = fadd <8 x double> %v3, %v7
  %b0 = fadd <8 x double> %a0, %a2
  %b1 = fadd <8 x double> %a1, %a3
  %c = fadd <8 x double> %b0, %b1
  %c.at = getelementptr <8 x double>, ptr %columns, i64 %k
  store <8 x double> %c, ptr %c.at, align 64
  %k.next = add i64 %k, 1
  %k.more = icmp ult i64 %k.next, 16
  br i1 %k.more, label %column, label %fold
fold:
  %s = phi i64 [ 8, %column ], [ %s.next, %folded ]
  br label %pair
pair:
  %j = phi i64 [ 0, %fold ], [ %j.next, %pair ]
  %far = add i64 %j, %s
  %p.at = getelementptr <8 x double>, ptr %columns, i64 %j
  %q.at = getelementptr <8 x double>, ptr %columns, i64 %far
  %p = load <8 x double>, ptr %p.at, align 64
  %q = load <8 x double>, ptr %q.at, align 64
  %r = fadd <8 x double> %p, %q
  store <8 x double> %r, ptr %p.at, align 64
  %j.next = add i64 %j, 1
  %j.more = icmp ult i64 %j.next, %s
  br i1 %j.more, label %pair, label %folded
folded:
  %s.next = lshr i64 %s, 1
  %s.more = icmp ne i64 %s.next, 0
  br i1 %s.more, label %fold, label %last
last:
  %e = load <8 x double>, ptr %columns, align 64
  %e.far = shufflevector <8 x double> %e, <8 x double> poison, <8 x i32> <i32 4, i32 5, i32 6, i32 7, i32 poison, i32 poison, i32 poison, i32 poison>
  %f = fadd <8 x double> %e, %e.far
  %f.far = shufflevector <8 x double> %f, <8 x double> poison, <8 x i32> <i32 2, i32 3, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison>
  %g = fadd <8 x double> %f, %f.far
  %g0 = extractelement <8 x double> %g, i64 0
  %g1 = extractelement <8 x double> %g, i64 1
  %h.raw = fadd double %g0, %g1
  %h = call double @llvm.arithmetic.fence.f64(double %h.raw)
  %h.nan = fcmp uno double %h, %h
  %h.one = select i1 %h.nan, double 0x7FF8000000000000, double %h
  ret double %h.one
}
;; tree.load.f64
  %i$j = add i64 %i, $offset
  %p$j = getelementptr double, ptr %x, i64 %i$j
  %v$j = load <8 x double>, ptr %p$j, align 8
;; tree.load.f32
  %i$j = add i64 %i, $offset
  %p$j = getelementptr float, ptr %x, i64 %i$j
  %w$j = load <8 x float>, ptr %p$j, align 4
  %v$j = fpext <8 x float> %w$j to <8 x double>

; A sum that is updated once per element, here: no partials, the operand itself is folded. Absent lanes are -0.0.
;; sum.whole
  %full = icmp eq i64 %n, $LANES
  br i1 %full, label %direct, label %copy
direct:
  %direct.sum = call double @"body.tree.$N"(ptr %a.base)
  store double %direct.sum, ptr %acc.at, align 8
  br label %leave
copy:
;; sum.buffer
  %buffer = alloca [$LANES x double], align 64
;; sum.pad
  %pad.none = icmp eq i64 %n, $LANES
  br i1 %pad.none, label %padded, label %pad
pad:
  %pad.i = phi i64 [ %n, %$from ], [ %pad.next, %pad ]
  %pad.at = getelementptr double, ptr %buffer, i64 %pad.i
  store double -0.0, ptr %pad.at, align 8
  %pad.next = add nuw nsw i64 %pad.i, 1
  %pad.more = icmp ult i64 %pad.next, $LANES
  br i1 %pad.more, label %pad, label %padded
padded:
  %sum = call double @"body.tree.f64"(ptr %buffer)
  store double %sum, ptr %acc.at, align 8
  br label %leave

;; partials
  %partials.at = getelementptr i8, ptr %ctx, i64 $CTX_PARTIALS
  %partials = load ptr, ptr %partials.at, align 8
  %partial.offset = mul i64 %imm, $PARTIAL_BYTES
  %$x = getelementptr i8, ptr %partials, i64 %partial.offset
;; partials.open
  br label %fill
fill:
  %i = phi i64 [ 0, %entry ], [ %i.next, %fill ]
  %p = getelementptr double, ptr %d.base, i64 %i
  store <$lanes x double> splat (double -0.0), ptr %p, align 8
  %i.next = add nuw nsw i64 %i, $lanes
  %i.more = icmp ult i64 %i.next, $LANES
  br i1 %i.more, label %fill, label %leave

; --- histograms --------------------------------------------------------------------------------------------------------
; Equal neighbours would wait for each other's store, so up to 256 bins are counted in four private copies first.

;; histogram
  %bins.list.at = getelementptr i8, ptr %ctx, i64 $CTX_BINS
  %bins.list = load ptr, ptr %bins.list.at, align 8
  %bins.at = getelementptr ptr, ptr %bins.list, i64 %imm
  %bins = load ptr, ptr %bins.at, align 8
  %four = and i64 $n, -4
  %small = icmp ule i64 %aux, 256
  %many = icmp ugt i64 $n, 255
  %private = and i1 %small, %many
  br i1 %private, label %clear, label %rest
clear:
  call void @llvm.memset.p0.i64(ptr align 64 %copies, i8 0, i64 4096, i1 false)
  br label %count
count:
  %i = phi i64 [ 0, %clear ], [ %i.next, %count ]
$counts
  %i.next = add nuw nsw i64 %i, 4
  %i.more = icmp ult i64 %i.next, %four
  br i1 %i.more, label %count, label %sum
sum:
  %eight = and i64 %aux, -8
  %tiny = icmp eq i64 %eight, 0
  br i1 %tiny, label %last, label %fold
fold:
  %g = phi i64 [ 0, %sum ], [ %g.next, %fold ]
  %g0.at = getelementptr i32, ptr %copies, i64 %g
  %g1.at = getelementptr i8, ptr %g0.at, i64 1024
  %g2.at = getelementptr i8, ptr %g0.at, i64 2048
  %g3.at = getelementptr i8, ptr %g0.at, i64 3072
  %g0 = load <8 x i32>, ptr %g0.at, align 32
  %g1 = load <8 x i32>, ptr %g1.at, align 32
  %g2 = load <8 x i32>, ptr %g2.at, align 32
  %g3 = load <8 x i32>, ptr %g3.at, align 32
  %g01 = add <8 x i32> %g0, %g1
  %g23 = add <8 x i32> %g2, %g3
  %g.all = add <8 x i32> %g01, %g23
  %g.wide = zext <8 x i32> %g.all to <8 x i64>
  %g.bin = getelementptr i64, ptr %bins, i64 %g
  %g.old = load <8 x i64>, ptr %g.bin, align 8
  %g.new = add <8 x i64> %g.old, %g.wide
  store <8 x i64> %g.new, ptr %g.bin, align 8
  %g.next = add nuw nsw i64 %g, 8
  %g.more = icmp ult i64 %g.next, %eight
  br i1 %g.more, label %fold, label %last
last:
  %odd = icmp ult i64 %eight, %aux
  br i1 %odd, label %bin, label %rest
bin:
  %b = phi i64 [ %eight, %last ], [ %b.next, %bin ]
  %s0.at = getelementptr i32, ptr %copies, i64 %b
  %s1.at = getelementptr i8, ptr %s0.at, i64 1024
  %s2.at = getelementptr i8, ptr %s0.at, i64 2048
  %s3.at = getelementptr i8, ptr %s0.at, i64 3072
  %s0 = load i32, ptr %s0.at, align 4
  %s1 = load i32, ptr %s1.at, align 4
  %s2 = load i32, ptr %s2.at, align 4
  %s3 = load i32, ptr %s3.at, align 4
  %s01 = add i32 %s0, %s1
  %s23 = add i32 %s2, %s3
  %s = add i32 %s01, %s23
  %s.wide = zext i32 %s to i64
  %bin.at = getelementptr i64, ptr %bins, i64 %b
  %bin.old = load i64, ptr %bin.at, align 8
  %bin.new = add i64 %bin.old, %s.wide
  store i64 %bin.new, ptr %bin.at, align 8
  %b.next = add nuw nsw i64 %b, 1
  %b.more = icmp ult i64 %b.next, %aux
  br i1 %b.more, label %bin, label %rest, !llvm.loop !0
rest:
  %from = phi i64 [ 0, %$from ], [ %four, %last ], [ %four, %bin ]
  %none = icmp eq i64 %from, $n
  br i1 %none, label %leave, label %one
one:
  %k = phi i64 [ %from, %rest ], [ %k.next, %one ]
$single
  %k.next = add nuw nsw i64 %k, 1
  %k.more = icmp ult i64 %k.next, $n
  br i1 %k.more, label %one, label %leave
;; histogram.copies
  %copies = alloca [1024 x i32], align 64
;; histogram.count
  %i$j = add i64 %i, $j
  %a$j.at = getelementptr i32, ptr %a.base, i64 %i$j
  %a$j = load i32, ptr %a$j.at, align 4
  %x$j = zext i32 %a$j to i64
  %y$j = add i64 %x$j, $copy
  %c$j.at = getelementptr i32, ptr %copies, i64 %y$j
  %c$j = load i32, ptr %c$j.at, align 4
  %d$j = add i32 %c$j, 1
  store i32 %d$j, ptr %c$j.at, align 4
;; histogram.single
  %o.at = getelementptr i32, ptr %a.base, i64 %k
  %o = load i32, ptr %o.at, align 4
  %o.wide = zext i32 %o to i64
  %o.bin = getelementptr i64, ptr %bins, i64 %o.wide
  %o.old = load i64, ptr %o.bin, align 8
  %o.new = add i64 %o.old, 1
  store i64 %o.new, ptr %o.bin, align 8
; Masked: an inactive lane's index may be anything, so it counts 0 in bin 0 (a histogram has one).
;; histogram.masked
  %o.at = getelementptr i32, ptr %a.base, i64 %k
  %o = load i32, ptr %o.at, align 4
  %m.at = getelementptr i8, ptr %mask.base, i64 %k
  %m = load i8, ptr %m.at, align 1
  %m.on = icmp ne i8 %m, 0
  %o.safe = select i1 %m.on, i32 %o, i32 0
  %m.one = zext i1 %m.on to i64
  %o.wide = zext i32 %o.safe to i64
  %o.bin = getelementptr i64, ptr %bins, i64 %o.wide
  %o.old = load i64, ptr %o.bin, align 8
  %o.new = add i64 %o.old, %m.one
  store i64 %o.new, ptr %o.bin, align 8
;; histogram.masked.loop
  %bins.list.at = getelementptr i8, ptr %ctx, i64 $CTX_BINS
  %bins.list = load ptr, ptr %bins.list.at, align 8
  %bins.at = getelementptr ptr, ptr %bins.list, i64 %imm
  %bins = load ptr, ptr %bins.at, align 8
  %none = icmp eq i64 $n, 0
  br i1 %none, label %leave, label %one
one:
  %k = phi i64 [ 0, %$from ], [ %k.next, %one ]
$single
  %k.next = add nuw nsw i64 %k, 1
  %k.more = icmp ult i64 %k.next, $n
  br i1 %k.more, label %one, label %leave

; --- emits ---------------------------------------------------------------------------------------------------------------

;; segment
  %emits.at = getelementptr i8, ptr %ctx, i64 $CTX_EMITS
  %emits = load ptr, ptr %emits.at, align 8
  %segment.offset = mul i64 %imm, 16
  %segment.at = getelementptr i8, ptr %emits, i64 %segment.offset
  %d.base = load ptr, ptr %segment.at, align 8
  %count.at = getelementptr i8, ptr %segment.at, i64 8
;; segment.all
  store i64 %n, ptr %count.at, align 8

; Kept lanes move up. A whole vector is stored at the count so far, which is at most its own position: it ends inside the
; lanes of the segment, and what it leaves behind is overwritten by the next or lies beyond the final count.
;; compact
  %whole = and i64 %n, -$lanes
  %few = icmp eq i64 %whole, 0
  br i1 %few, label %rest, label %block
block:
  %i = phi i64 [ 0, %entry ], [ %i.next, %block ]
  %at = phi i64 [ 0, %entry ], [ %at.next, %block ]
$wide
  %packed = call <$lanes x $T> @llvm.experimental.vector.compress.v$lanes$N(<$lanes x $T> %w.r, <$lanes x i1> %w.on, <$lanes x $T> poison)
  %packed.at = getelementptr $T, ptr %d.base, i64 %at
  store <$lanes x $T> %packed, ptr %packed.at, align $A
  %bits = bitcast <$lanes x i1> %w.on to i$lanes
  %kept = call i$lanes @llvm.ctpop.i$lanes(i$lanes %bits)
  %kept.wide = zext i$lanes %kept to i64
  %at.next = add nuw nsw i64 %at, %kept.wide
  %i.next = add nuw nsw i64 %i, $lanes
  %i.more = icmp ult i64 %i.next, %whole
  br i1 %i.more, label %block, label %rest
rest:
  %start = phi i64 [ 0, %entry ], [ %whole, %block ]
  %far = phi i64 [ 0, %entry ], [ %at.next, %block ]
;; compact.none
  br label %rest
rest:
  %start = phi i64 [ 0, %entry ]
  %far = phi i64 [ 0, %entry ]
; The lanes that are left, or all of them where the machine has no instruction for it.
;; compact.rest
  %done = icmp eq i64 %start, %n
  br i1 %done, label %counted, label %one
one:
  %j = phi i64 [ %start, %rest ], [ %j.next, %one ]
  %to = phi i64 [ %far, %rest ], [ %to.next, %one ]
$single
  %one.at = getelementptr $T, ptr %d.base, i64 %to
  store $T %s.r, ptr %one.at, align $A
  %one.kept = zext i1 %s.on to i64
  %to.next = add nuw nsw i64 %to, %one.kept
  %j.next = add nuw nsw i64 %j, 1
  %j.more = icmp ult i64 %j.next, %n
  br i1 %j.more, label %one, label %counted, !llvm.loop !0
counted:
  %final = phi i64 [ %far, %rest ], [ %to.next, %one ]
  store i64 %final, ptr %count.at, align 8
  br label %leave

; --- tables --------------------------------------------------------------------------------------------------------------

;; table
  %tables.at = getelementptr i8, ptr %ctx, i64 $CTX_TABLES
  %tables = load ptr, ptr %tables.at, align 8
  %table.offset = mul i64 %imm, 16
  %table.at = getelementptr i8, ptr %tables, i64 %table.offset
  %table = load ptr, ptr %table.at, align 8
  %length.at = getelementptr i8, ptr %table.at, i64 8
  %us.length = load i64, ptr %length.at, align 8

;; gather
  %p = getelementptr $T, ptr %table, i64 %a
  %r = load $T, ptr %p, align $A
  ret $T %r
;; gather.masked
  br i1 %on, label %take, label %skip
take:
  %p = getelementptr $T, ptr %table, i64 %a
  %v = load $T, ptr %p, align $A
  br label %skip
skip:
  %r = phi $T [ 0, %0 ], [ %v, %take ]
  ret $T %r
;; gather.wide
  %p = getelementptr $T, ptr %table, <$lanes x i64> %a
  %r = call <$lanes x $T> @llvm.masked.gather.v$lanes$T.v${lanes}p0(<$lanes x ptr> %p, i32 $A, <$lanes x i1> $on, <$lanes x $T> zeroinitializer)
  ret <$lanes x $T> %r
;; gather.declare
declare <$lanes x $T> @llvm.masked.gather.v$lanes$T.v${lanes}p0(<$lanes x ptr>, i32, <$lanes x i1>, <$lanes x $T>)

; A table on disk: %table is its PAGED block. A lane whose page is not in memory leaves a request and no value; when one did,
; the tile ends here, and the item is run again once the pages are there. Which page, not which lane, is asked for: lanes
; in a row that want the same one ask once.
;; paged
  %shift.at = getelementptr i8, ptr %table, i64 $PAGED_SHIFT
  %shift = load i64, ptr %shift.at, align 8
  %origin.at = getelementptr i8, ptr %table, i64 $PAGED_BASE
  %origin = load i64, ptr %origin.at, align 8
  %frames.at = getelementptr i8, ptr %table, i64 $PAGED_FRAMES
  %frames = load ptr, ptr %frames.at, align 8
  %requests.at = getelementptr i8, ptr %table, i64 $PAGED_REQUESTS
  %requests = load ptr, ptr %requests.at, align 8
  %room.at = getelementptr i8, ptr %requests, i64 $REQUESTS_CAPACITY
  %room = load i64, ptr %room.at, align 8
  %handle.at = getelementptr i8, ptr %table, i64 $PAGED_HANDLE
  %handle = load i32, ptr %handle.at, align 8
  %counter.at = getelementptr i8, ptr %table, i64 $PAGED_COUNT
  %counter = load ptr, ptr %counter.at, align 8
  %used.at = getelementptr i8, ptr %table, i64 $PAGED_USED
  %used = load ptr, ptr %used.at, align 8
  %page.bytes = shl i64 1, %shift
  %page.mask = sub i64 %page.bytes, 1
  %none = icmp eq i64 $n, 0
  br i1 %none, label %leave, label %one
one:
  %i = phi i64 [ 0, %$from ], [ %i.next, %last ]
  %asked = phi i64 [ -1, %$from ], [ %asked.next, %last ]
$on
act:
  %lane.a = getelementptr i64, ptr %a.base, i64 %i
  %a = load i64, ptr %lane.a, align 8
  %from.0 = mul i64 %a, $A
  %byte = add i64 %from.0, %origin
  %page = lshr i64 %byte, %shift
  %frame.at = getelementptr i64, ptr %frames, i64 %page
  %frame = load i64, ptr %frame.at, align 8
  %mark = getelementptr i8, ptr %used, i64 %page
  store i8 1, ptr %mark, align 1
  %away = icmp eq i64 %frame, 0
  br i1 %away, label %miss, label %take, !prof !1
take:
  %inside = and i64 %byte, %page.mask
  %cell.at = add i64 %frame, %inside
  %cell = inttoptr i64 %cell.at to ptr
  %raw = load $T, ptr %cell, align $A
  %r = call $R @"$widening"($T %raw)
  %lane.d = getelementptr $R, ptr %d.base, i64 %i
  store $R %r, ptr %lane.d, align $B
  br label %last
miss:
  %again = icmp eq i64 %page, %asked
  br i1 %again, label %last, label %ask
ask:
  %number = atomicrmw add ptr %counter, i64 1 monotonic
  %fits = icmp ult i64 %number, %room
  br i1 %fits, label %write, label %last
write:
  %request.offset = mul i64 %number, $IO_REQUEST_BYTES
  %request.first = add i64 %request.offset, $REQUESTS_ENTRIES
  %request = getelementptr i8, ptr %requests, i64 %request.first
  store i32 $LOAD_MISS, ptr %request, align 8
  %request.handle = getelementptr i8, ptr %request, i64 4
  store i32 %handle, ptr %request.handle, align 4
  %request.at = getelementptr i8, ptr %request, i64 8
  %wanted = shl i64 %page, %shift
  store i64 %wanted, ptr %request.at, align 8
  %request.bytes = getelementptr i8, ptr %request, i64 16
  store i64 %page.bytes, ptr %request.bytes, align 8
  br label %last
last:
  %asked.next = phi i64 [ %asked, %take ], [ %page, %miss ], [ %page, %ask ], [ %page, %write ]$skipped
  %i.next = add nuw nsw i64 %i, 1
  %i.more = icmp ult i64 %i.next, $n
  br i1 %i.more, label %one, label %over
over:
  %all = icmp eq i64 %asked.next, -1
  br i1 %all, label %leave, label %drop
drop:
  ret ptr null
;; paged.all
  br label %act
;; paged.masked
  %m.at = getelementptr i8, ptr %mask.base, i64 %i
  %m = load i8, ptr %m.at, align 1
  %m.on = icmp ne i8 %m, 0
  br i1 %m.on, label %act, label %last

;; atomic
  %none = icmp eq i64 $n, 0
  br i1 %none, label %leave, label %one
one:
  %i = phi i64 [ 0, %$from ], [ %i.next, %last ]
$on
act:
  %at.a = getelementptr i64, ptr %a.base, i64 %i
  %a = load i64, ptr %at.a, align 8
  %at.b = getelementptr $T, ptr %b.base, i64 %i
  %b = load $T, ptr %at.b, align $A
  %cell = getelementptr $T, ptr %table, i64 %a
  %was = atomicrmw $rmw ptr %cell, $T %b monotonic
  br label %last
last:
  %i.next = add nuw nsw i64 %i, 1
  %i.more = icmp ult i64 %i.next, $n
  br i1 %i.more, label %one, label %leave
;; atomic.all
  br label %act
;; atomic.masked
  %m.at = getelementptr i8, ptr %mask.base, i64 %i
  %m = load i8, ptr %m.at, align 1
  %m.on = icmp ne i8 %m, 0
  br i1 %m.on, label %act, label %last
