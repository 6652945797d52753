// twitter-api-sdk, X's older SDK: sends tokens' parameters in the query, and the challenge method as s256.

import { ADA, CLIENT_ID, CLIENT_SECRET, DELETED_POST, GRACE, POST, REDIRECT_URI, SCOPES } from "./at_sandbox.js";
import { allow, refusal, report } from "./at_sandbox.js";
import { auth, Client } from "twitter-api-sdk";

const user = new auth.OAuth2User({
  client_id: CLIENT_ID,
  client_secret: CLIENT_SECRET,
  callback: REDIRECT_URI,
  scopes: SCOPES,
});
const { code, state } = await allow(user.generateAuthURL({ state: "a-state", code_challenge_method: "s256" }));
await user.requestAccessToken(code);
const { token } = await user.refreshAccessToken();
const x = new Client(user);

const me = await x.users.findMyUser({ "user.fields": ["public_metrics"] });
const liked = await x.tweets.usersIdLike(ADA, { tweet_id: POST });
const unliked = await x.tweets.usersIdUnlike(ADA, POST);
const reposted = await x.tweets.usersIdRetweets(ADA, { tweet_id: POST });
const bookmarked = await x.bookmarks.postUsersIdBookmarks(ADA, { tweet_id: POST });
const followed = await x.users.usersIdFollow(ADA, { target_user_id: GRACE });
const posted = await x.tweets.createTweet({ text: "By twitter-api-sdk." });
const removed = await x.tweets.deleteTweetById(posted.data.id);
const missing = await refusal(() => x.tweets.usersIdLike(ADA, { tweet_id: DELETED_POST }));
const revoked = await user.revokeAccessToken();
const ended = await refusal(() => x.users.findMyUser());

report({
  state,
  scope: token.scope.split(" "),
  me: me.data,
  liked: liked.data,
  unliked: unliked.data,
  reposted: reposted.data.retweeted,
  bookmarked: bookmarked.data,
  followed: followed.data,
  posted: posted.data,
  removed: removed.data,
  missing: [missing.status, missing.error.errors[0].message],
  revoked,
  ended: ended.status,
});
