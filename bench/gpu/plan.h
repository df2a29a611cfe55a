// The host's half of split-KV decode: cut all (request, head group, row) triples into equal shares.
//
// A row is `ways` neighbouring pages of one request, one page for each warp that works on a head.
// Rows are laid end to end in the order request, head group, row; block b takes the b-th of n equal
// shares, so every block reads the same number of bytes whatever the lengths are. A share that ends
// inside a request leaves a piece; the block that finishes a request's last piece merges them.
// Pieces cost time, so the share may be up to 1/24 larger than need be where that gives fewer of them.
#pragma once
#include <algorithm>
#include <vector>

/// One block's work on one request and head group. 32 bytes, read by the kernel as two int4.
struct Item {
  int request, head;          // head: first kv head of the group
  int page_begin, page_end;   // half-open, in the request's page list
  int length;                 // tokens of the request
  int slot;                   // where this piece's partial result goes; unused when pieces == 1
  int first_slot, pieces;     // all partial results of this request and head group
};
static_assert(sizeof(Item) == 32, "two int4");

struct Plan {
  std::vector<Item> items;
  std::vector<int> first_item;  // blocks + 1
  int blocks = 0;
  int slots = 0;
};

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// How many items shares of `share` rows make of requests of these rows.
inline long count_items(const std::vector<int>& rows, int groups, long share) {
  long items = 0, at = 0;
  for (int length : rows) {
    for (int group = 0; group < groups; ++group, at += length) {
      items += (at + length - 1) / share - at / share + 1;
    }
  }
  return items;
}

/// The share in [least, least × 25/24] that makes the fewest items; the smallest of several.
inline long choose_share(const std::vector<int>& rows, int groups, long least) {
  long best = least, best_items = count_items(rows, groups, least);
  const long step = std::max(1L, least / 64);
  for (long share = least + step; share <= least + least / 24; share += step) {
    const long items = count_items(rows, groups, share);
    if (items < best_items) best = share, best_items = items;
  }
  return best;
}

/// `groups` head groups of `heads_per_group` kv heads; at least `rows_min` rows a block.
inline Plan make_plan(const std::vector<int>& lengths, int page_tokens, int groups,
                      int heads_per_group, int ways, int blocks_max, int rows_min) {
  std::vector<int> pages, rows_of;
  long total = 0;
  for (int length : lengths) {
    pages.push_back(ceil_div(length, page_tokens));
    rows_of.push_back(ceil_div(pages.back(), ways));
    total += long(rows_of.back()) * groups;
  }
  const long least = std::max<long>(rows_min, (total + blocks_max - 1) / blocks_max);
  const long share = choose_share(rows_of, groups, least);
  Plan plan;
  plan.blocks = int((total + share - 1) / share);
  auto share_begin = [&](long block) { return share * block; };

  std::vector<std::vector<Item>> of_block(plan.blocks);
  long at = 0;
  int block = 0;
  for (int request = 0; request < int(lengths.size()); ++request) {
    const int rows = rows_of[request];
    for (int group = 0; group < groups; ++group) {
      std::vector<std::pair<int, Item>> pieces;
      for (int row = 0; row < rows;) {
        while (share_begin(block + 1) <= at) ++block;
        const int take = int(std::min<long>(rows - row, share_begin(block + 1) - at));
        const int end = std::min((row + take) * ways, pages[request]);
        pieces.push_back({block, Item{request, group * heads_per_group, row * ways, end,
                                      lengths[request], 0, 0, 0}});
        row += take;
        at += take;
      }
      const bool split = pieces.size() > 1;
      for (size_t i = 0; i < pieces.size(); ++i) {
        Item& item = pieces[i].second;
        item.pieces = int(pieces.size());
        item.first_slot = plan.slots;
        item.slot = plan.slots + int(i);
        of_block[pieces[i].first].push_back(item);
      }
      if (split) plan.slots += int(pieces.size());
    }
  }
  for (const auto& items : of_block) {
    plan.first_item.push_back(int(plan.items.size()));
    plan.items.insert(plan.items.end(), items.begin(), items.end());
  }
  plan.first_item.push_back(int(plan.items.size()));
  return plan;
}
