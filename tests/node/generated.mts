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

/** Returns what X did. A policy may let a write wait for a person: its answer then has an approval and no data. */
function carriedOut<Answer extends object>(answer: Answer | undefined): Exclude<Answer, components["schemas"]["Asked"]> {
  if (answer === undefined || "approval" in answer) throw new Error("this call was refused, or it waits for a person");
  return answer as Exclude<Answer, components["schemas"]["Asked"]>;
}

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

const waiting = await client.POST("/apis/v1/twitter/retweet_twitter", { body: { tweet_id: given.tweet_id } });
if (!waiting.data || !("approval" in waiting.data)) throw new Error("no person was asked");

// @ts-expect-error: the types refuse to read what X did before it is known that nobody has to be asked.
const unchecked = waiting.data.data;

const refused = await client.POST("/apis/v1/twitter/like_twitter", { body: { tweet_id: "1" } });
const error: components["schemas"]["Refusal"] = refused.error!.error;

console.log(
  JSON.stringify({
    liked: carriedOut(liked.data).data.liked,
    media_id: uploaded.data!.data.media_id,
    post_id: carriedOut(posted.data).data.id,
    text: carriedOut(posted.data).data.text,
    waits: waiting.data.approval.state,
    waiting_id: waiting.data.approval.request_id,
    unchecked,
    mistyped: mistyped.error!.error.reason,
    status: refused.response.status,
    reason: error.reason,
    whose: error.whose,
    fix: error.fix,
    retryable: error.retryable,
  }),
);
