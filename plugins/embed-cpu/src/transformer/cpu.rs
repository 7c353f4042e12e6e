//! What this CPU has, and how code is compiled for it.

/// What loops over numbers are compiled for; the compiler vectorises them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every CPU of the target has.
    Portable,
}

impl Isa {
    /// All that this CPU has, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        [
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, avx512()),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, avx2()),
            (Self::Portable, true),
        ]
        .into_iter()
        .filter_map(|(isa, here)| here.then_some(isa))
    }

    /// The name for reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && avx2()
}

#[cfg(target_arch = "x86_64")]
fn avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Defines a function that runs `$body::<FUSED>` as it is compiled for an [`Isa`]. The body is
/// `#[inline(always)]`; `FUSED` says whether a fused multiplication and addition is one instruction.
macro_rules! by_isa {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident;) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "it only passes them on")]
        pub(crate) fn $name(isa: $crate::transformer::cpu::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) {
                $body::<true>($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $body::<true>($($arg),*);
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Isa::available`, the only source of this value, found the features.
                $crate::transformer::cpu::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::transformer::cpu::Isa::Avx2 => unsafe { avx2($($arg),*) },
                $crate::transformer::cpu::Isa::Portable => {
                    $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*);
                }
            }
        }
    };
}
pub(crate) use by_isa;
