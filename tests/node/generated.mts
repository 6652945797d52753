// Acts through openapi-fetch with the types that openapi-typescript generated, and prints JSON.
import createClient from "openapi-fetch";
import type { components, paths } from "./birdwire.js";

declare const process: { env: Record<string, string> };
type Given = { url: string; key: string; tweet_id: string; image: string };

const given: Given = JSON.parse(process.env.GENERATED!);
const client = createClient<paths>({
  baseUrl: given.url,
  headers: { Authorization: `Bearer ${given.key}` },
});

const liked = await client.POST("/apis/v1/twitter/like_twitter", { body: { tweet_id: given.tweet_id } });

const image = Uint8Array.from(given.image.match(/../g)!, (byte) => parseInt(byte, 16));
const uploaded = await client.POST("/apis/v1/twitter/upload_media", {
  body: { media_files: "dot.png" },
  bodySerializer: () => {
    const form = new FormData();
    form.set("media_files", new Blob([image], { type: "image/png" }), "dot.png");
    return form;
  },
});

const media: components["schemas"]["Media"] = { media_ids: [uploaded.data!.data.media_id] };
const posted = await client.POST("/apis/v1/twitter/post_twitter", {
  params: { header: { "Idempotency-Key": "generated-typescript" } },
  body: { text: "Generated", media },
});

// @ts-expect-error: the types refuse a number as a text, and so does the gateway.
const mistyped = await client.POST("/apis/v1/twitter/post_twitter", { body: { text: 1 } });

const refused = await client.POST("/apis/v1/twitter/like_twitter", { body: { tweet_id: "1" } });
const error: components["schemas"]["Refusal"] = refused.error!.error;

console.log(
  JSON.stringify({
    liked: liked.data!.data.liked,
    media_id: uploaded.data!.data.media_id,
    post_id: posted.data!.data.id,
    text: posted.data!.data.text,
    mistyped: mistyped.error!.error.reason,
    status: refused.response.status,
    reason: error.reason,
    whose: error.whose,
    fix: error.fix,
    retryable: error.retryable,
  }),
);
