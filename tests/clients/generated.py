"""Acts through the client that openapi-python-client generated; its environment runs this, and it prints JSON."""

from __future__ import annotations

import io
import json
import os
import sys

from birdwire_client import AuthenticatedClient
from birdwire_client.api.act import like_twitter, post_twitter, retweet_twitter, upload_media
from birdwire_client.models import Asked, Error, LikedData, Media, PostedData, PostTwitter, TweetTarget, UploadedData
from birdwire_client.models import UploadMediaBody as Upload
from birdwire_client.types import File


def main(url: str, key: str, tweet_id: str, image: bytes) -> dict[str, object]:
    """Like, upload, post, ask a person and be refused; return what the typed answers hold."""
    with AuthenticatedClient(url, key, raise_on_unexpected_status=True) as client:
        liked = like_twitter.sync(client=client, body=TweetTarget(tweet_id))
        assert isinstance(liked, LikedData)
        file = File(io.BytesIO(image), "dot.png", "image/png")
        uploaded = upload_media.sync(client=client, body=Upload(media_files=file))
        assert isinstance(uploaded, UploadedData)
        post = PostTwitter(text="Generated", media=Media([uploaded.data.media_id]))
        posted = post_twitter.sync(client=client, body=post, idempotency_key="generated-python")
        assert isinstance(posted, PostedData)
        waiting = retweet_twitter.sync(client=client, body=TweetTarget(tweet_id))
        assert isinstance(waiting, Asked)
        refused = like_twitter.sync_detailed(client=client, body=TweetTarget("1"))
        assert isinstance(refused.parsed, Error)
    error = refused.parsed.error
    return {
        "liked": liked.data.liked,
        "media_id": uploaded.data.media_id,
        "post_id": posted.data.id,
        "text": posted.data.text,
        "waits": waiting.approval.state.value,
        "waiting_id": waiting.approval.request_id,
        "status": refused.status_code.value,
        "reason": error.reason,
        "whose": error.whose.value,
        "fix": error.fix,
        "retryable": error.retryable,
    }


if __name__ == "__main__":
    given = json.loads(os.environ["GENERATED"])
    json.dump(main(given["url"], given["key"], given["tweet_id"], bytes.fromhex(given["image"])), sys.stdout)
