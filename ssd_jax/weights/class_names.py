"""Class names of published weights, without background."""

_VOC = """aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike
person pottedplant sheep sofa train tvmonitor"""
VOC_CLASSES = tuple(_VOC.split())
"""Classes of PASCAL VOC, in alphabetical order."""

_COCO91 = """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,
-,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,-,backpack,
umbrella,-,-,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,
baseball glove,skateboard,surfboard,tennis racket,bottle,-,wine glass,cup,fork,knife,spoon,bowl,
banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
-,dining table,-,-,toilet,-,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,
refrigerator,-,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"""
COCO91_CLASSES = tuple(
    f"N/A {i}" if name == "-" else name
    for i, name in enumerate(_COCO91.replace("\n", "").split(","), start=1)
)
"""Classes of COCO by category id, as in torchvision. Ten ids have no category; their rows are part
of the softmax, so they are kept, as N/A 12 and so on."""
