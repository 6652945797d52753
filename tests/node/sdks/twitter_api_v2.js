// twitter-api-v2: sends tokens' parameters as JSON, the challenge method as s256, and chunks without a filename.

import { ADA, CLIENT_ID, CLIENT_SECRET, DELETED_POST, PNG, POST, REDIRECT_URI, SCOPES } from "./at_sandbox.js";
import { allow, refusal, report } from "./at_sandbox.js";
import { TwitterApi } from "twitter-api-v2";

const app = new TwitterApi({ clientId: CLIENT_ID, clientSecret: CLIENT_SECRET });
const link = app.generateOAuth2AuthLink(REDIRECT_URI, { scope: SCOPES });
const { code, state } = await allow(link.url);
const login = await app.loginWithOAuth2({ code, codeVerifier: link.codeVerifier, redirectUri: REDIRECT_URI });
const renewed = await app.refreshOAuth2Token(login.refreshToken);
const x = renewed.client.v2;

const me = await x.me({ "user.fields": ["public_metrics"] });
const liked = await x.like(ADA, POST);
const unliked = await x.unlike(ADA, POST);
const image = await x.uploadMedia(PNG, { media_type: "image/png" }, 100);
const video = await x.uploadMedia(PNG, { media_type: "video/mp4", media_category: "tweet_video" }, 100);
const posted = await x.tweet("By twitter-api-v2.", { media: { media_ids: [image] } });
const filmed = await x.reply("And moving.", posted.data.id, { media: { media_ids: [video] } });
const removed = await x.deleteTweet(filmed.data.id);
const missing = await refusal(() => x.like(ADA, DELETED_POST));
const spent = await refusal(() => app.refreshOAuth2Token(login.refreshToken));
const revoked = await app.revokeOAuth2Token(renewed.refreshToken, "refresh_token");
const ended = await refusal(() => x.me());

report({
  stateKept: state === link.state,
  scope: renewed.scope,
  me: me.data,
  liked: liked.data,
  unliked: unliked.data,
  media: [image, video],
  posted: posted.data,
  removed: removed.data,
  missing: [missing.code, missing.data.errors[0].message],
  spent: [spent.code, spent.data.error],
  revoked,
  ended: ended.code,
});
