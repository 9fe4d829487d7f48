"""What is compared: one method, one file. Importing this package imports no torch; classes load when asked for.

``BUILTIN`` maps a name to its class and ``CONFIGS`` to its configuration, both as lazy ``module:Class`` entries.
"""

BUILTIN = {
    "full": "methods.full:Full",
    "decoder": "methods.decoder:DecoderOnly",
    "bitfit": "methods.bitfit:BitFit",
    "ssf": "methods.ssf:SSF",
    "adapter": "methods.adapter:Adapter",
    "adaptformer": "methods.adaptformer:AdaptFormer",
    "vpt": "methods.vpt:VPT",
    "lst": "methods.lst:LST",
    "samadapter": "methods.samadapter:SAMAdapter",
    "lora": "methods.lora:LoRA",
    "samed": "methods.samed:SAMed",
    "convlora": "methods.convlora:ConvLoRA",
    "naslora": "methods.naslora:NASLoRA",
    "naspclora": "methods.naspclora:NASPCLoRA",
}

CONFIGS = {
    "full": "methods.configs:FullConfig",
    "decoder": "methods.configs:DecoderOnlyConfig",
    "bitfit": "methods.configs:BitFitConfig",
    "ssf": "methods.configs:SSFConfig",
    "adapter": "methods.configs:AdapterConfig",
    "adaptformer": "methods.configs:AdaptFormerConfig",
    "vpt": "methods.configs:VPTConfig",
    "lst": "methods.configs:LSTConfig",
    "samadapter": "methods.configs:SAMAdapterConfig",
    "lora": "methods.configs:LoRAConfig",
    "samed": "methods.configs:SAMedConfig",
    "convlora": "methods.configs:ConvLoRAConfig",
    "naslora": "methods.configs:NASLoRAConfig",
    "naspclora": "methods.configs:NASPCLoRAConfig",
}
