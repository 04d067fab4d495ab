; What each primitive does to one element: the only place where the CPU engine says so.
;
; A section is the body of a function of %a, %b, %c that computes %r. $T is the operands' type, $R the result's, $I the
; integer of $T's width, $N intrinsic's name of $T (f32, i64 ...), $W its width in bits. A section's name is the
; instruction's verb, with the kind of type before it where two kinds share a verb. No instruction has fast-math flags:
; LLVM may neither contract nor reassociate. "name.trap" computes %bad, "name.code" the fault %code of a bad element.

;; int.add
  %r = add $T %a, %b
;; int.sub
  %r = sub $T %a, %b
;; int.mul
  %r = mul $T %a, %b
;; int.and
  %r = and $T %a, %b
;; int.or
  %r = or $T %a, %b
;; int.xor
  %r = xor $T %a, %b
;; int.shl
  %s = and $T %b, $MASK
  %r = shl $T %a, %s
;; int.shr_s
  %s = and $T %b, $MASK
  %r = ashr $T %a, %s
;; int.shr_u
  %s = and $T %b, $MASK
  %r = lshr $T %a, %s
;; int.rotl
  %r = call $T @llvm.fshl.$N($T %a, $T %a, $T %b)
;; int.rotr
  %r = call $T @llvm.fshr.$N($T %a, $T %a, $T %b)
;; int.clz
  %r = call $T @llvm.ctlz.$N($T %a, i1 false)
;; int.ctz
  %r = call $T @llvm.cttz.$N($T %a, i1 false)
;; int.popcnt
  %r = call $T @llvm.ctpop.$N($T %a)
;; int.bitrev
  %r = call $T @llvm.bitreverse.$N($T %a)
;; int.bswap
  %r = call $T @llvm.bswap.$N($T %a)
;; int.min_s
  %r = call $T @llvm.smin.$N($T %a, $T %b)
;; int.min_u
  %r = call $T @llvm.umin.$N($T %a, $T %b)
;; int.max_s
  %r = call $T @llvm.smax.$N($T %a, $T %b)
;; int.max_u
  %r = call $T @llvm.umax.$N($T %a, $T %b)
;; int.eqz
  %q = icmp eq $T %a, 0
  %r = zext i1 %q to i32
;; int.extend8_s
  %s = trunc $T %a to i8
  %r = sext i8 %s to $T
;; int.extend16_s
  %s = trunc $T %a to i16
  %r = sext i16 %s to $T
;; int.extend32_s
  %s = trunc $T %a to i32
  %r = sext i32 %s to $T
;; int.compare
  %q = icmp $P $T %a, %b
  %r = zext i1 %q to i32

; Quotients of 32 bits through doubles: rounding a/b to 53 bits never reaches the next integer, so truncation is exact,
; and this vectorises. Operands of elements that are not there (inactive, or trapped) may be bad: they must not stop us.
;; i32.div_s
  %z = icmp eq i32 %b, 0
  %d = select i1 %z, i32 1, i32 %b
  %x = sitofp i32 %a to double
  %y = sitofp i32 %d to double
  %q = fdiv double %x, %y
  %w = fptosi double %q to i64
  %r = trunc i64 %w to i32
;; i32.div_u
  %z = icmp eq i32 %b, 0
  %d = select i1 %z, i32 1, i32 %b
  %x = uitofp i32 %a to double
  %y = uitofp i32 %d to double
  %q = fdiv double %x, %y
  %w = fptoui double %q to i64
  %r = trunc i64 %w to i32
;; i32.rem_s
  %z = icmp eq i32 %b, 0
  %d = select i1 %z, i32 1, i32 %b
  %x = sitofp i32 %a to double
  %y = sitofp i32 %d to double
  %q = fdiv double %x, %y
  %w = fptosi double %q to i64
  %t = trunc i64 %w to i32
  %m = mul i32 %t, %d
  %r = sub i32 %a, %m
;; i32.rem_u
  %z = icmp eq i32 %b, 0
  %d = select i1 %z, i32 1, i32 %b
  %x = uitofp i32 %a to double
  %y = uitofp i32 %d to double
  %q = fdiv double %x, %y
  %w = fptoui double %q to i64
  %t = trunc i64 %w to i32
  %m = mul i32 %t, %d
  %r = sub i32 %a, %m
;; i64.div_s
  %z = icmp eq i64 %b, 0
  %m = icmp eq i64 %b, -1
  %u = or i1 %z, %m
  %d = select i1 %u, i64 1, i64 %b
  %q = sdiv i64 %a, %d
  %n = sub i64 0, %a
  %r = select i1 %m, i64 %n, i64 %q
;; i64.div_u
  %z = icmp eq i64 %b, 0
  %d = select i1 %z, i64 1, i64 %b
  %r = udiv i64 %a, %d
;; i64.rem_s
  %z = icmp eq i64 %b, 0
  %m = icmp eq i64 %b, -1
  %u = or i1 %z, %m
  %d = select i1 %u, i64 1, i64 %b
  %r = srem i64 %a, %d
;; i64.rem_u
  %z = icmp eq i64 %b, 0
  %d = select i1 %z, i64 1, i64 %b
  %r = urem i64 %a, %d
;; int.div_s.trap
  %z = icmp eq $T %b, 0
  %m = icmp eq $T %b, -1
  %l = icmp eq $T %a, $LEAST
  %o = and i1 %m, %l
  %bad = or i1 %z, %o
;; int.div_s.code
  %z = icmp eq $T %b, 0
  %code = select i1 %z, i32 2, i32 3
;; int.zero.trap
  %bad = icmp eq $T %b, 0
;; int.zero.code
  %code = add i32 0, 2

;; float.add
  %r = fadd $T %a, %b
;; float.sub
  %r = fsub $T %a, %b
;; float.mul
  %r = fmul $T %a, %b
;; float.div
  %r = fdiv $T %a, %b
;; float.fma
  %r = call $T @llvm.fma.$N($T %a, $T %b, $T %c)
;; float.min
  %r = call $T @llvm.minimum.$N($T %a, $T %b)
;; float.max
  %r = call $T @llvm.maximum.$N($T %a, $T %b)
;; float.ceil
  %r = call $T @llvm.ceil.$N($T %a)
;; float.floor
  %r = call $T @llvm.floor.$N($T %a)
;; float.trunc
  %r = call $T @llvm.trunc.$N($T %a)
;; float.nearest
  %r = call $T @llvm.roundeven.$N($T %a)
;; float.sqrt
  %r = call $T @llvm.sqrt.$N($T %a)
;; float.abs
  %r = call $T @llvm.fabs.$N($T %a)
;; float.neg
  %r = fneg $T %a
;; float.copysign
  %r = call $T @llvm.copysign.$N($T %a, $T %b)
;; float.compare
  %q = fcmp $P $T %a, %b
  %r = zext i1 %q to i32
; LLVM takes all NaN results for equal and would remove a choice between two of them: the fence hides what %a is.
;; canonical
  %x = call $T @llvm.arithmetic.fence.$N($T %a)
  %q = fcmp uno $T %x, %x
  %r = select i1 %q, $T 0x7FF8000000000000, $T %x

;; wrap
  %r = trunc $T %a to $R
;; extend_s
  %r = sext $T %a to $R
;; extend_u
  %r = zext $T %a to $R
;; convert_s
  %r = sitofp $T %a to $R
;; convert_u
  %r = uitofp $T %a to $R
;; demote
  %r = fptrunc $T %a to $R
;; promote
  %r = fpext $T %a to $R
;; reinterpret
  %r = bitcast $T %a to $R
; What conversion yields out of range is not used. (llvm.fptosi.sat becomes scalar code on x86-64.)
;; trunc_sat_s
  %c = fptosi $T %a to $R
  %low = fcmp $P $T %a, $LOW
  %high = fcmp olt $T %a, $HIGH
  %nan = fcmp uno $T %a, %a
  %x = select i1 %low, $R %c, $R $LEAST
  %y = select i1 %high, $R %x, $R $GREATEST
  %r = select i1 %nan, $R 0, $R %y
;; trunc_sat_u
  %c = fptoui $T %a to $R
  %low = fcmp $P $T %a, $LOW
  %high = fcmp olt $T %a, $HIGH
  %nan = fcmp uno $T %a, %a
  %x = select i1 %low, $R %c, $R $LEAST
  %y = select i1 %high, $R %x, $R $GREATEST
  %r = select i1 %nan, $R 0, $R %y
;; trunc_s
  %r = fptosi $T %a to $R
;; trunc_u
  %r = fptoui $T %a to $R
;; trunc.trap
  %low = fcmp $P $T %a, $LOW
  %high = fcmp olt $T %a, $HIGH
  %good = and i1 %low, %high
  %bad = xor i1 %good, true
;; trunc.code
  %nan = fcmp uno $T %a, %a
  %code = select i1 %nan, i32 4, i32 3

;; mov
  %r = add $T %a, 0
;; select
  %q = icmp ne i32 %c, 0
  %r = select i1 %q, $T %a, $T %b

; Memory types. Loads widen, stores narrow; f16 and bf16 have one NaN.
;; load.i8
  %r = sext i8 %a to i32
;; load.u8
  %r = zext i8 %a to i32
;; load.i16
  %r = sext i16 %a to i32
;; load.u16
  %r = zext i16 %a to i32
;; load.bool
  %q = icmp ne i8 %a, 0
  %r = zext i1 %q to i32
;; load.f16
  %h = bitcast i16 %a to half
  %v = fpext half %h to float
  %w = call float @llvm.arithmetic.fence.f32(float %v)
  %q = fcmp uno float %w, %w
  %f = select i1 %q, float 0x7FF8000000000000, float %w
  %r = bitcast float %f to i32
;; load.bf16
  %w = zext i16 %a to i32
  %s = shl i32 %w, 16
  %f = bitcast i32 %s to float
  %q = fcmp uno float %f, %f
  %r = select i1 %q, i32 2143289344, i32 %s
;; load.same
  %r = add $T %a, 0
;; store.same
  %r = add $T %a, 0
;; store.8
  %r = trunc i32 %a to i8
;; store.16
  %r = trunc i32 %a to i16
;; store.bool
  %q = icmp ne i32 %a, 0
  %r = zext i1 %q to i8
;; store.f16
  %f = bitcast i32 %a to float
  %h = fptrunc float %f to half
  %x = bitcast half %h to i16
  %q = fcmp uno float %f, %f
  %r = select i1 %q, i16 32256, i16 %x
;; store.bf16
  %f = bitcast i32 %a to float
  %q = fcmp uno float %f, %f
  %o = lshr i32 %a, 16
  %b0 = and i32 %o, 1
  %b1 = add i32 %b0, 32767
  %u = add i32 %a, %b1
  %h = lshr i32 %u, 16
  %x = trunc i32 %h to i16
  %r = select i1 %q, i16 32704, i16 %x
