// @xdevplatform/xdk, X's own SDK for TypeScript.

import { ADA, CLIENT_ID, CLIENT_SECRET, DELETED_POST, GRACE, PNG, POST, REDIRECT_URI, SCOPES } from "./at_sandbox.js";
import { allow, refusal, report } from "./at_sandbox.js";
import { Client, generateCodeVerifier, OAuth2 } from "@xdevplatform/xdk";

const user = new OAuth2({
  clientId: CLIENT_ID,
  clientSecret: CLIENT_SECRET,
  redirectUri: REDIRECT_URI,
  scope: SCOPES,
});
const verifier = generateCodeVerifier();
await user.setPkceParameters(verifier);
const { code, state } = await allow(await user.getAuthorizationUrl("a-state"));
await user.exchangeCode(code, verifier);
const token = await user.refreshToken();
const x = new Client({ accessToken: token.access_token });

const me = await x.users.getMe({ userFields: ["public_metrics"] });
const liked = await x.users.likePost(ADA, { tweetId: POST });
const unliked = await x.users.unlikePost(ADA, POST);
const reposted = await x.users.repostPost(ADA, { tweetId: POST });
const bookmarked = await x.users.createBookmark(ADA, { tweetId: POST });
const followed = await x.users.followUser(ADA, { targetUserId: GRACE });
const image = await x.media.upload({ media: PNG.toString("base64"), mediaCategory: "tweet_image" });
const video = await x.media.initializeUpload({
  mediaType: "video/mp4",
  mediaCategory: "tweet_video",
  totalBytes: PNG.length,
});
await x.media.appendUpload(video.data.id, { media: PNG.toString("base64"), segmentIndex: 0 });
await x.media.finalizeUpload(video.data.id);
const processed = await x.media.getUploadStatus(video.data.id, { command: "STATUS" });
const posted = await x.posts.create({ text: "By xdk.", media: { mediaIds: [image.data.id] } });
const removed = await x.posts.delete(posted.data.id);
const missing = await refusal(() => x.users.likePost(ADA, { tweetId: DELETED_POST }));

report({
  state,
  scope: token.scope.split(" "),
  me: me.data,
  liked: liked.data,
  unliked: unliked.data,
  reposted: reposted.data.retweeted,
  bookmarked: bookmarked.data,
  followed: followed.data,
  uploaded: image.data,
  processed: processed.data.processingInfo,
  posted: posted.data,
  removed: removed.data,
  missing: [missing.status, missing.data.errors[0].message],
});
