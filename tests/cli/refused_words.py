"""Words that cannot be read, composed or meant so, and what the message must say."""

REFUSED_WORDS = {
    "a lost interpolation": (
        ["+recipe=demo", "name=${nowhere}"],
        ["name = ${nowhere} (command line) no key nowhere is given", "\\${ is the characters"],
    ),
    "an interpolation that leads back": (
        ["+recipe=demo", "seed=${seed}"],
        ["seed = ${seed} (command line) refers to itself", "give the value itself"],
    ),
    "an interpolation that is not closed": (
        ["+recipe=demo", "name='${'"],
        ["name = ${ (command line) cannot be read between ${ and }", "give ${<key>}"],
    ),
    "a variable that is not set": (
        ["+recipe=demo", "name=${oc.env:NOT_SET_HERE}"],
        ["the environment has no variable NOT_SET_HERE", "${oc.env:NOT_SET_HERE,<value>}"],
    ),
    "a value that is nested without sense": (
        ["+recipe=demo", f"model.overrides.a={'[' * 40}1{']' * 40}"],
        ["model.overrides.a = [[[", "holds more than 32 maps or lists", "give another model"],
    ),
    "a stage that stands on others": (
        ["+recipe=demo", "stages=[serve]"],
        ["serve: inference.model is not given and", "holds no model run the stages train and"],
    ),
    "a group of keys that is left open": (
        ["+recipe=demo", "training='???'"],
        ["training (command line) must be given", "give training.<key>=<value>, or leave it out"],
    ),
    "a variable that is not set, under a key of null": (
        ["+recipe=demo", "model.overrides={null: [${oc.env:NOT_SET_HERE}]}"],
        ["model.overrides.null.0", "the environment has no variable NOT_SET_HERE"],
    ),
    "a resolver that is none": (
        ["+recipe=demo", "name=${nope:1}"],
        ["there is no resolver nope", "there are oc.env"],
    ),
    "a key that is taken out and is not there": (
        ["+recipe=demo", "~training.stepz"],
        ["~training.stepz (command line) removes a key", "did you mean ~training.steps?"],
    ),
    "a key that is taken out at another value": (
        ["+recipe=demo", "~training.steps=5"],
        ["~training.steps = 5 (command line) training.steps is 400 give ~training.steps"],
    ),
    "a group that is taken out and is not there": (
        ["+recipe=demo", "~tracker"],
        ["~tracker (command line) removes an option that is not chosen"],
    ),
    "an element of a list": (
        ["+recipe=demo", "stages.7=train"],
        ["stages.7 = train (command line) stages is a list of 6", "stages=[<value>,<value>]"],
    ),
    "several recipes": (
        ["+recipe=[demo,qwen3_8b]"],
        ["recipe = [demo,qwen3_8b] (command line) is several options", "-m recipe=demo,qwen3_8b"],
    ),
    "a recipe twice": (
        ["+recipe=demo", "+recipe=qwen3_8b"],
        ["recipe = qwen3_8b (command line) is given twice; the other is demo"],
    ),
    "several sources with a comma": (
        ["+recipe=demo", "data=openai,sharegpt"],
        ["data = openai,sharegpt", "add -m", "together as a list: data=[openai,sharegpt]"],
    ),
    "several sources": (
        ["+recipe=demo", "data=[openai,sharegpt]"],
        [
            "data.sources.openai.path (conf/data/openai.yaml) must be given",
            "give data.sources.sharegpt.path=<value>",
        ],
    ),
    "no group of this name": (
        ["+recipe=demo", "data=[openai,sharegpd]"],
        ["data = sharegpd (command line) no such file did you mean sharegpt?"],
    ),
    "a setting of Hydra's": (
        ["+recipe=demo", "hydra.nope=1"],
        ["hydra.nope = 1 (command line) is not a Hydra setting", "leave it out"],
    ),
    "a group at another place": (
        ["+recipe=demo", "model@other=tiny"],
        ["model@other = tiny (command line) model cannot be placed elsewhere give model=tiny"],
    ),
    "no key": (
        ["+recipe=demo", "a..b=1"],
        ["a..b = 1 (command line) is not a key", "<key>=<value>"],
    ),
    "a word for nothing": (["+recipe=demo", "=1"], ["=1 = 1 (command line) is not a key"]),
    "a bracket that is not closed": (
        ["+recipe=demo", "name={a"],
        ["name = {a (command line) cannot be read: a } is missing quote it: 'name=\"{a\"'"],
    ),
    "a function that is none": (
        ["+recipe=demo", "name=int(abc)"],
        ["cannot be read: it is written as a function", "quote it: 'name=\"int(abc)\"'"],
    ),
    "a number for a revision": (
        [
            "+recipe=demo",
            "data=hf_datasets",
            "data.sources.hf_datasets.path=a/b",
            "data.sources.hf_datasets.revision=695e0514",
        ],
        [
            "data.sources.hf_datasets.revision = 695e0514 (command line) must be text",
            "quote it: data.sources.hf_datasets.revision=\"'695e0514'\"",
        ],
    ),
    "a number for a name": (
        ["+recipe=demo", "name=2024_11_05", "serving.model_name=1.10"],
        ["quote it: name=\"'2024_11_05'\"", "quote it: serving.model_name=\"'1.10'\""],
    ),
    "true for a name": (
        ["+recipe=demo", "serving.model_name=TRUE"],
        ["quote it: serving.model_name=\"'TRUE'\""],
    ),
    "a number in a list of texts": (
        ["+recipe=demo", "inference.sampling.stop=[x,1e3]"],
        ["stop.1 = 1e3 (command line)", "quote it: 'inference.sampling.stop=[x,\"1e3\"]'"],
    ),
    "an escape for the terminal": (
        ["+recipe=demo", "model.path=./\x1b[31mred"],
        ["cannot be read", "\\x1b[31mred"],
    ),
    "an escape for the terminal, quoted": (
        ["+recipe=demo", "model.path='./\x1b[31mred'"],
        ["model.path = ./\\x1b[31mred (command line)"],
    ),
    "a name that no folder can have": (
        ["+recipe=demo", f"name={'x' * 300}"],
        ["name = xxx", "… (command line) cannot be the name of a folder", "at most 150 bytes"],
    ),
    "a path that no file can have": (
        ["+recipe=demo", f"run_dir=here/{'x' * 300}"],
        ["run_dir = here/xxx", "has a name of 300 bytes; a file's has 255 at most"],
    ),
    "more devices than there are": (
        ["+recipe=demo", "hardware.devices_per_node=1000000000"],
        ["devices_per_node = 1000000000 (command line) must be at least 1 and at most 1024"],
    ),
    "a number that nothing takes": (
        ["+recipe=demo", "seed=1e30"],
        ["seed = 1e30 (command line) is too large give at most 9223372036854775807"],
    ),
    "heads without dimensions": (
        ["+recipe=demo", "model.overrides.head_dim=-1"],
        ["model.overrides.head_dim = -1 (command line) must be a whole number from 1"],
    ),
    "heads of an odd dimension": (
        ["+recipe=demo", "model.overrides.head_dim=33"],
        ["head_dim = 33", "rotary positions need pairs of them", "give an even head_dim"],
    ),
    "heads that do not divide": (
        ["+recipe=demo", "model.overrides.num_attention_heads=6"],
        ["num_attention_heads = 6 (command line) does not divide hidden_size, 128"],
    ),
    "a dimension that is text": (
        ["+recipe=demo", "model.config.hidden_size=[1]", "model.overrides.rope_scaling=5"],
        ["model.config.hidden_size = [1]", "model.overrides.rope_scaling = 5", "must be a map"],
    ),
    "a group that is null": (
        ["+recipe=demo", "+data=null"],
        ["data = null (command line) no such file there are alpaca"],
    ),
    "a question that Hydra does not know": (["--cfg", "jbo"], ["--cfg = jbo", "one of job"]),
    "a part of the configuration that is none": (
        ["--cfg", "job", "--package", "modle", "+recipe=demo"],
        ["--package = modle", "is not a part of this configuration did you mean model?"],
    ),
    "a flag of --cfg alone": (["--resolve", "+recipe=demo"], ["--resolve", "give --cfg job"]),
}
